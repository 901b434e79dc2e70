"""Everything that training would refuse, refused before the job is in the queue. Needs no GPU."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

from mup_lightning.config.schema import Config
from mup_lightning.errors import UserError
from mup_lightning.slurm import queue
from mup_lightning.slurm.options import WORD, SlurmConfig

RECORD = "job.json"
"""In the folder `slurm` of a run's folder: the number of its last job."""


def settle(config: Config, slurm: SlurmConfig) -> None:
    """Say in the configuration what the cluster will have: devices, accelerator, precision.

    Args:
        config: changed in place.
        slurm: says how many GPUs.

    Raises:
        UserError: configuration and cluster contradict each other.
    """
    from mup_lightning.training.hardware import resolve_precision

    gpus, trainer = slurm.checked_gpus(), config.trainer
    accelerator: Literal["gpu", "cpu"] = "gpu" if gpus else "cpu"
    if trainer.accelerator not in ("auto", accelerator):
        raise UserError(f"slurm.gpus is {gpus}, but trainer.accelerator is {trainer.accelerator}; leave that out")
    if gpus and trainer.devices not in (1, gpus):
        raise UserError(
            f"slurm.gpus is {gpus}, but trainer.devices is {trainer.devices}; leave the latter out: a job has one "
            f"process for each GPU"
        )
    config.trainer = replace(trainer, accelerator=accelerator, devices=gpus or trainer.devices)
    resolve_precision(config.trainer)


def check(config: Config) -> None:
    """Refuse what `train` would refuse, and a run that has a job already.

    Args:
        config: settled.

    Raises:
        UserError: the reason.
    """
    name_is_plain(config.run.root, "run.root")
    name_is_plain(config.run.name, "run.name")
    name_is_plain(str(Path.cwd()), "the folder you are in")
    if config.run.resume not in (None, "last", "auto"):
        raise UserError(
            f"run.resume is {config.run.resume}; a job continues its own run only: last, auto, or leave it out. "
            f"To start from another run's checkpoint, train the first steps with mup-lightning train"
        )

    from mup_lightning.data.datamodule import TokenDataModule
    from mup_lightning.data.sampler import accumulation_steps
    from mup_lightning.data.shards import Manifest, check_vocabulary
    from mup_lightning.plan.plan import plan
    from mup_lightning.training.checkpoint import RunFolder
    from mup_lightning.training.saving import identity_of, resume_from

    data, trainer = config.data, config.trainer
    plan(config)
    accumulation_steps(data.batch_size, data.micro_batch, trainer.devices * trainer.nodes)
    manifest = Manifest.load(data.path)
    check_vocabulary(manifest, data.tokenizer)
    # Shards must be there and of the right length; their contents are compared when training starts.
    TokenDataModule(replace(data, verify=False), config.model.context, config.seed, trainer.max_steps).setup()

    folder = RunFolder(config)
    refuse_second_job(folder.path)
    resume_from(config, folder, identity_of(config, manifest))


def refuse_second_job(folder: Path) -> None:
    """Two jobs in one folder would write over each other's checkpoints.

    Raises:
        UserError: the run's last job is still in the queue, or runs.
    """
    record = folder / "slurm" / RECORD
    if record.is_file():
        try:
            job = json.loads(record.read_text())["job"]
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"{record}, the number of the run's last job, is damaged; see that squeue has none of this run, and "
                f"remove the file"
            ) from None
        state = queue.state(job)
        if state is not None:
            raise UserError(
                f"job {job} of the run {folder} is {state}; wait for it, or end it (scancel {job}), or give the "
                f"new run another name (--run.name NAME, or RUN=NAME)"
            )


def name_is_plain(name: str, what: str) -> None:
    """Raise UserError for a name that would need quoting in an #SBATCH line."""
    if not WORD.fullmatch(name):
        raise UserError(f"{what} is {name!r}; a job needs a name without blanks, quotes, backslashes and %")
