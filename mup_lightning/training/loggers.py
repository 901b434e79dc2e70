"""Where a run's curves go: Lightning's loggers, by name, with the same tags; a resumed run goes on where it was."""

import importlib.util
import os
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger

from mup_lightning.config.schema import Config, RunConfig, leaves
from mup_lightning.errors import UserError
from mup_lightning.files import read_json, write_json
from mup_lightning.training.run import RunFolder, is_first_process, plain
from mup_lightning.typed import convert

PROJECT = "mup_lightning"
"""Of Weights & Biases and MLflow, unless WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME say another."""

HELP = {"wandb": "log in (wandb login), keep the run here (WANDB_MODE=offline)", "mlflow": "see MLFLOW_TRACKING_URI"}
"""What to do where one cannot be opened."""


def check(run: RunConfig) -> None:
    """Raise UserError for a logger whose package is not installed."""
    needed = {"wandb": ["wandb"], "mlflow": ["mlflow"]}
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        needed["mlflow"] += ["sqlalchemy", "alembic"]
    for name in run.loggers:
        for package in needed.get(name, []):
            spec = importlib.util.find_spec(package)
            if spec is None or spec.origin is None:  # a folder of that name, as wandb makes them, is not a package
                raise UserError(
                    f"run.loggers has {name}, which needs {package}, which is not installed: pip install "
                    f"'mup-lightning[{name}]', or leave it out"
                )


def make(config: Config, folder: RunFolder, start: int | None) -> list[Logger]:
    """The loggers of a run, those of services opened; other processes than the first have one that does nothing.

    The folder's loggers.json keeps what the services call the run, by which one that is resumed from step `start` finds
    it. Raises UserError where a service cannot be reached, or does not know the run.
    """
    names = list(dict.fromkeys(config.run.loggers))
    if not is_first_process():
        return [DummyLogger()] if names else []
    # TensorBoard forgets points from there on, which a killed run wrote after its last checkpoint.
    purge_step = start + 1 if start is not None else 0 if config.run.resume == "auto" else None
    file = folder.path / "loggers.json"
    known = convert(read_json(file, "ids of the run") if file.is_file() else {}, dict[str, str], str(file))
    made: list[Any] = []
    for name in names:
        if name == "tensorboard":
            made.append(TensorBoardLogger(folder.path, name="", version=folder.tensorboard.name, purge_step=purge_step))
        elif name == "csv":  # Lightning would begin the table anew: a resumed run takes over the rows before it
            made.append(CSVLogger(folder.path, "", folder.csv.parent.name, flush_logs_every_n_steps=1))
            rows = folder.rows() if start else []
            made[-1].experiment.metrics = [row for row in rows if int(row["step"]) <= (start or 0)]  # deletes the file
            made[-1].experiment.save()
        else:
            try:
                made.append(_service(name, config, folder, known.get(name)))
                if name not in known:
                    made[-1].log_hyperparams(leaves(plain(config)))
                    known[name] = str(made[-1].version)
                    write_json(file, known)
            except Exception as error:  # each has its own kinds
                why = str(error).strip().partition("\n")[0]
                raise UserError(
                    f"run.loggers: {name} cannot be opened ({why}); {HELP[name]}, or leave it out"
                ) from None
    return made


def _service(name: str, config: Config, folder: RunFolder, known: str | None) -> Logger:
    """Weights & Biases or MLflow, with the run begun, or, where it is known, continued."""
    if name == "wandb":
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        run = Wandb(name=config.run.name, save_dir=folder.path, id=known, project=project)
        _ = run.experiment
        return run
    project, root = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT), folder.path.parent.absolute()
    place: dict[str, Any] = {"tracking_uri": f"sqlite:///{root}/mlflow.db", "artifact_location": str(root / "mlflow")}
    if server := os.environ.get("MLFLOW_TRACKING_URI"):
        place = {"tracking_uri": server}
    made: Any = MLFlowLogger(project, run_name=config.run.name, run_id=known, **place)
    made.experiment.update_run(made.run_id, status="RUNNING")  # refused where the run was deleted
    return made


class Wandb(WandbLogger):
    """Lightning's, but its run ends with the training, not with the process, which may train again."""

    def finalize(self, status: str) -> None:
        """End the run."""
        super().finalize(status)
        if self._experiment is not None:
            self._experiment.finish(exit_code=int(status == "failed"))
            self._experiment = None
