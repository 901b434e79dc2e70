"""Curves go where run.loggers says, with the same tags and values, and a resumed run goes on where it was."""

import json
import sys
from functools import partial
from importlib.util import find_spec

import pytest

from mup_lightning.errors import UserError
from mup_lightning.studies.features.report import read_scalars
from mup_lightning.training.run import RunFolder
from mup_lightning.training.train import after, train
from tests.callbacks.test_forecast import forecast_of
from tests.conftest import tiny_config
from tests.training.test_resume import crash, points

SERVICES = [name for name in ("mlflow", "wandb") if find_spec(name)]
EVERY = {"trainer.spectral_norms_every": 4, "trainer.feature_norms_every": 4}


def table(config):
    """Tag -> step -> values, in the order in which they were written."""
    found = {}
    for row in RunFolder(config).rows():
        for tag, value in row.items():
            found.setdefault(tag, {}).setdefault(int(row["step"]), []).append(float(value))
    del found["step"]
    return found


@pytest.fixture(scope="module")
def make(corpus, tmp_path_factory):
    """Makes configurations of runs in one folder, with every logger that is installed."""
    every = EVERY | {"run.loggers": ["csv", "tensorboard", *SERVICES]}
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("WANDB_MODE", "offline")
        yield partial(tiny_config, corpus, tmp_path_factory.mktemp("logged"), **every)


@pytest.fixture(scope="module")
def logged(make):
    """The folder of a run that died, and was continued.

    Norms of step 4 are measured in step 5, which the run has done before it died, and does again.
    """
    crash(make(), 7)
    assert max(table(make())["train/loss"]) == 6
    train(make(**{"run.resume": "last"}), progress=False)
    return RunFolder(make())


def test_the_table_has_what_tensorboard_has_after_a_crash_too(make, logged):
    found, curves = table(make()), read_scalars(logged.tensorboard)
    assert found.keys() == curves.keys()
    assert points(logged.tensorboard, "train/loss") == [2, 4, 6, 8, 10]
    for tag in ("features/logits", "spectral/norms/output/head/w"):
        assert list(found[tag]) == points(logged.tensorboard, tag) == [0, 4, 8]
    for tag, curve in curves.items():
        assert all(len(values) == 1 for values in found[tag].values()), tag
        assert {step: values[0] for step, values in found[tag].items()} == pytest.approx(dict(curve), rel=1e-6), tag


def test_without_tensorboard_nothing_is_missing_but_what_it_alone_shows(tiny, tmp_path):
    config = tiny(**EVERY, **{"run.loggers": ["csv"]})
    config.run.forecast = forecast_of(config, tmp_path / "forecast.json")
    crash(config, 7)
    again = tiny(**EVERY, **{"run.loggers": ["csv", "csv"], "run.resume": "last", "run.forecast": config.run.forecast})
    result = train(again, progress=False)
    assert result.tensorboard is None
    assert "TensorBoard" not in after(again, result)
    assert not (tmp_path / "runs/tiny/tensorboard").exists()
    found = table(config)
    assert list(found["train/bits_per_byte"]) == list(found["forecast/loss"]) == [2, 4, 6, 8, 10]
    assert all(len(values) == 1 for points in found.values() for values in points.values())
    assert found["validation/loss"][10] == [result.validation_loss]
    nothing = tiny(**{"run.loggers": [], "run.name": "none"})
    assert train(nothing, progress=False).validation_loss is not None
    assert {path.name for path in RunFolder(nothing).path.iterdir()} == {"checkpoints", "config.yaml", "result.json"}


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_logger_that_is_not_installed_is_refused_before_anything_is_written(tiny, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, name, None)
    wanted = (
        rf"run.loggers has {name}, which needs {name}, which is not installed: pip install 'mup-lightning\[{name}\]'"
    )
    with pytest.raises(UserError, match=wanted):
        train(tiny(**{"run.loggers": ["csv", name]}))
    assert not (tmp_path / "runs").exists()


def test_mlflow_has_the_same_curves_and_a_resumed_run_is_the_same_one(make, logged):
    mlflow = pytest.importorskip("mlflow")
    client = mlflow.MlflowClient(f"sqlite:///{logged.path.parent}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("mup_lightning").experiment_id])
    assert (run.info.run_name, run.info.status, run.data.params["model.width"]) == ("tiny", "FINISHED", "32")
    found = table(make())
    assert run.data.metrics.keys() == found.keys()
    for tag in ("train/loss", "train/bits_per_byte", "train/gradient_norm", "train/gradient_norm/adamw"):
        history = {point.step: point.value for point in client.get_metric_history(run.info.run_id, tag)}
        assert history == {step: values[0] for step, values in found[tag].items()}
    client.delete_run(run.info.run_id)
    with pytest.raises(UserError, match=r"run\.loggers: mlflow cannot be opened \(.*\); see MLFLOW_TRACKING_URI, or"):
        train(make(**{"run.loggers": ["mlflow"], "run.resume": "last", "trainer.max_steps": 12}), progress=False)


def test_wandb_keeps_a_run_offline_and_continues_it(make, logged):
    pytest.importorskip("wandb")
    other = make(**{"run.loggers": ["wandb"], "run.name": "other"})
    assert train(other, progress=False).finished
    folders = [logged.path, RunFolder(other).path]
    known = [json.loads((folder / "loggers.json").read_text())["wandb"] for folder in folders]
    assert known[0] != known[1]
    files = [list(folder.glob("wandb/offline-run-*/*.wandb")) for folder in folders]
    assert [[file.name for file in own] for own in files] == [[f"run-{known[0]}.wandb"] * 2, [f"run-{known[1]}.wandb"]]
    for tag in table(make()):
        assert all(tag.encode() in file.read_bytes() for file in files[1]), tag
