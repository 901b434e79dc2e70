"""`mup-lightning submit`: refuses all that training would refuse before the job is in the queue. Needs no GPU."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

import yaml

from mup_lightning.config.schema import Config
from mup_lightning.errors import UserError
from mup_lightning.files import make_folder
from mup_lightning.slurm import queue, script
from mup_lightning.slurm.options import WORD, SlurmConfig

RECORD = "job.json"
"""In the folder `slurm` of a run's folder: the number of its last job."""


def submit_training(config: Config, slurm: SlurmConfig, *, dry: bool) -> int:
    """Submit the training of a configuration.

    Args:
        config: the run.
        slurm: what is asked of SLURM.
        dry: print the script instead.

    Returns:
        The exit code.

    Raises:
        UserError: training or SLURM would refuse it.
    """
    settle(config, slurm)
    check(config)
    folder = Path(config.run.root) / config.run.name / "slurm"
    config.run.resume = "auto"
    text = script.training(
        slurm,
        name=slurm.job or config.run.name.replace("/", "-"),
        nodes=config.trainer.nodes,
        processes=config.trainer.devices,
        folder=folder,
        program=_program(),
    )
    if dry:
        return _show(text)
    queue.test(text)

    from mup_lightning.training.checkpoint import plain

    make_folder(folder, "--run.root, --run.name")
    # As it is now: a recipe that changes while the job waits, or between two restarts, changes nothing.
    (folder / "config.yaml").write_text(yaml.safe_dump(plain(asdict(config)), sort_keys=False))
    job = _submit(folder, text)
    (folder / RECORD).write_text(json.dumps({"job": job}) + "\n")
    trainer = config.trainer
    each = f"{trainer.devices} {'GPUs' if slurm.gpus else 'CPU processes'}"
    print(
        f"job {job}: {config.run.name} on {trainer.nodes} x {each}\n"
        f"  watch     squeue -j {job}; tail -F {folder}/{job}.log\n"
        f"  stop      scancel {job}    (saves; the same command with resume=auto submits the rest)\n"
        f"  requeue   scancel --signal=USR1 {job}    (saves, goes back into the queue)\n"
        f"  script    {folder}/job.sbatch"
    )
    return 0


def submit_sweep(sweep: Path, command: list[str], slurm: SlurmConfig, *, out: Path, tasks: int, dry: bool) -> int:
    """Submit a sweep as an array job.

    Args:
        sweep: its file.
        command: `mup-lightning` verb and options that run it, without --shard.
        slurm: what is asked of SLURM for each task.
        out: folder of its table.
        tasks: jobs of the array.
        dry: print the script instead.

    Returns:
        The exit code.

    Raises:
        UserError: SLURM would refuse it.
    """
    name = slurm.job or f"sweep-{out.name}"
    folder = out / "slurm"
    text = script.sweep(slurm, name=name, tasks=tasks, command=[str(_program()), *command], folder=folder)
    if dry:
        return _show(text)
    queue.test(text)
    make_folder(folder)
    job = _submit(folder, text)
    print(
        f"job {job}: {tasks} tasks of {sweep}, each on "
        f"{f'{slurm.gpus} GPUs' if slurm.gpus else 'CPUs alone (--slurm.gpus N: GPUs)'}; table {out}/results.csv\n"
        f"  watch     squeue -j {job}; tail -F {folder}/{job}_1.log\n"
        f"  stop      scancel {job}    (submit it again to go on)\n"
        f"  script    {folder}/job.sbatch"
    )
    return 0


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
                f"new run another name (run=NAME)"
            )


def name_is_plain(name: str, what: str) -> None:
    """Raise UserError for a name that would need quoting in an #SBATCH line."""
    if not WORD.fullmatch(name):
        raise UserError(f"{what} is {name!r}; a job needs a name without blanks, quotes, backslashes and %")


def _submit(folder: Path, text: str) -> str:
    """Write the script into the folder and submit it."""
    file = folder / "job.sbatch"
    file.write_text(text)
    return queue.submit(str(file))


def _show(text: str) -> int:
    """Print the script, and what SLURM says about it."""
    print(text, flush=True)
    print(queue.test(text) if queue.available() else "not checked by SLURM: there is no sbatch here", file=sys.stderr)
    return 0


def _program() -> Path:
    """The command mup-lightning beside this Python.

    Raises:
        UserError: it is not installed.
    """
    program = Path(sys.executable).with_name("mup-lightning")
    if not program.is_file():
        raise UserError(f"there is no {program}, which the job would run; pip install this package there")
    return program
