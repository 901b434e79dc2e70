"""`mup-lightning submit`, which refuses beforehand whatever training would refuse, and requeueing."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

import yaml

from mup_lightning import signals
from mup_lightning.config.schema import Config
from mup_lightning.errors import UserError
from mup_lightning.files import make_folder, read_json, write_atomic, write_json
from mup_lightning.slurm import script
from mup_lightning.slurm.options import WORD, SlurmConfig, seconds

RECORD = "job.json"
"""File in the folder `slurm` of a run, with the number of its last job."""


def submit_training(config: Config, slurm: SlurmConfig, *, dry: bool) -> int:
    """Submit the training of a configuration, or only print the script if `dry`.

    Returns:
        The exit code.

    Raises:
        UserError: training or SLURM would refuse it.
    """
    settle(config, slurm)
    check(config)
    folder, trainer = Path(config.run.root) / config.run.name / "slurm", config.trainer
    config.run.resume = "auto"
    text = script.training(
        slurm,
        name=slurm.job or config.run.name.replace("/", "-"),
        nodes=trainer.nodes,
        processes=trainer.devices,
        folder=folder,
        program=_program(),
    )
    if dry:
        return _show(text)
    _test(text)

    from mup_lightning.training.checkpoint import plain

    make_folder(folder, "--run.root, --run.name")
    # A snapshot: a recipe that changes while the job waits, or between two restarts, changes nothing.
    write_atomic(folder / "config.yaml", yaml.safe_dump(plain(asdict(config)), sort_keys=False))
    job = _submit(folder, text)
    write_json(folder / RECORD, {"job": job})
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
    """Submit a sweep, which has been checked, as an array job.

    Args:
        sweep: the sweep's file.
        command: `mup-lightning` verb and options that run it, without --shard.
        slurm: what each task requests from SLURM.
        out: folder of its table.
        tasks: jobs of the array.
        dry: print the script instead.

    Returns:
        The exit code.

    Raises:
        UserError: SLURM would refuse it.
    """
    name, folder = slurm.job or f"sweep-{out.name}", out / "slurm"
    text = script.sweep(slurm, name=name, tasks=tasks, command=[str(_program()), *command], folder=folder)
    if dry:
        return _show(text)
    _test(text)
    make_folder(folder)
    job = _submit(folder, text)
    print(
        f"job {job}: {tasks} tasks of {sweep}, each on "
        f"{f'{slurm.gpus} GPUs' if slurm.gpus else 'CPUs alone (--slurm.gpus N: GPUs)'}; table {out}/results.csv\n"
        f"  watch     squeue -j {job}; tail -F {folder}/{job}_1.log\n"
        f"  stop      scancel {job}    (submit it again to continue)\n"
        f"  script    {folder}/job.sbatch"
    )
    return 0


def settle(config: Config, slurm: SlurmConfig) -> None:
    """Set in the configuration what the cluster decides: devices, accelerator, precision.

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
    name_is_plain(str(Path.cwd()), "the working directory")
    if config.run.resume not in (None, "last", "auto"):
        raise UserError(
            f"run.resume is {config.run.resume}; a job continues its own run only: last, auto, or leave it out. "
            f"To start from another run's checkpoint, train the first steps with mup-lightning train"
        )

    from mup_lightning.data.datamodule import TokenDataModule
    from mup_lightning.data.sampler import accumulation_steps
    from mup_lightning.data.shards import Manifest
    from mup_lightning.plan.plan import plan
    from mup_lightning.training.checkpoint import RunFolder
    from mup_lightning.training.saving import identity_of, resume_from

    data, trainer = config.data, config.trainer
    plan(config)
    accumulation_steps(data.batch_size, data.micro_batch, trainer.devices * trainer.nodes)
    # Shards must be there and of the right length; their contents are compared when training starts.
    TokenDataModule(replace(data, verify=False), config.model.context, config.seed, trainer.max_steps).setup()
    folder = RunFolder(config)
    refuse_second_job(folder.path)
    resume_from(config, folder, identity_of(config, Manifest.load(data.path)))


def refuse_second_job(folder: Path) -> None:
    """Raise UserError if a run's last job is queued or running: two would overwrite each other's checkpoints."""
    record = folder / "slurm" / RECORD
    if not record.is_file():
        return
    job = read_json(record, "the number of the run's last job; if squeue lists no such job, remove the file")["job"]
    if not available():
        return
    done = subprocess.run(["squeue", "-h", "-j", job, "-o", "%T"], capture_output=True, text=True, check=False)
    if state := done.stdout.strip():  # nothing for a job that is over or unknown
        raise UserError(
            f"job {job} of the run {folder} is {state}; wait for it, or end it (scancel {job}), or give the new run "
            f"another name (run=NAME)"
        )


def name_is_plain(name: str, what: str) -> None:
    """Raise UserError for a name that would need quoting in an #SBATCH line."""
    if not WORD.fullmatch(name):
        raise UserError(f"{what} is {name!r}; a job needs a name without blanks, quotes, backslashes and %")


def requeue(step: int, first_step: int) -> bool:
    """Put this job back into the queue. Called by one process, after all of them have saved.

    Args:
        step: optimizer steps done and saved.
        first_step: how many of them were done when this process started.

    Returns:
        Whether it was requeued; a cancelled job is not.

    Raises:
        UserError: it would be requeued forever, or SLURM refuses.
    """
    job, restarts = os.environ["SLURM_JOB_ID"], int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    again = "submit it again with the same command and resume=auto"
    if restarts and step == first_step:
        raise UserError(
            f"job {job} was stopped at step {step} and has made no step since it was requeued, so another requeue "
            f"would not help. Ask for more time (--slurm.time), or for a partition where it is not preempted so "
            f"soon, and {again}"
        )
    if restarts >= int(os.environ[signals.VARIABLE]):
        raise UserError(
            f"job {job} has been requeued {restarts} times, which is the limit (slurm.max_requeues); step {step} is "
            f"saved. To continue, {again}"
        )
    try:
        cancelled = _is_cancelled(job)
        if not cancelled:
            _command("scontrol", "requeue", job)
    except UserError as error:
        raise UserError(
            f"step {step} is saved, but job {job} could not go back into the queue: {error}. To continue, {again}"
        ) from error
    if cancelled:
        print(f"job {job} was cancelled: step {step} is saved, and it does not go back into the queue", flush=True)
    else:
        print(f"job {job} goes back into the queue, and continues after step {step}", flush=True)
    return not cancelled


def _is_cancelled(job: str) -> bool:
    """Whether SLURM is ending the job for another reason than its time limit. Preempted jobs still count as running."""
    fields = dict(re.findall(r"(JobState|RunTime|TimeLimit)=(\S+)", _command("scontrol", "show", "job", job)))
    if fields.get("JobState") != "COMPLETING":
        return fields.get("JobState") == "CANCELLED"
    limit = fields.get("TimeLimit", "")
    return not limit[:1].isdigit() or seconds(fields["RunTime"]) < seconds(limit)


def available() -> bool:
    """Whether this machine can submit jobs."""
    return shutil.which("sbatch") is not None


def _command(*command: str, script: str | None = None) -> str:
    """The output of a SLURM command, both streams.

    Raises:
        UserError: it is missing or fails; the message quotes it.
    """
    try:
        done = subprocess.run(command, input=script, capture_output=True, text=True, check=False)
    except OSError as error:
        raise UserError(
            f"{command[0]} cannot be run ({error.strerror}): submit on a machine of the cluster; with --dry the script "
            f"is printed anywhere"
        ) from error
    said = (done.stdout.strip() + "\n" + done.stderr.strip()).strip().replace("sbatch: ", "")
    if done.returncode:
        raise UserError(f"{command[0]} refuses the job: " + said.replace("\n", "; "))
    return said


def _test(text: str) -> str:
    """What SLURM would do with a script; nothing is submitted. Raises UserError where SLURM would refuse it."""
    return _command("sbatch", "--test-only", script=text)


def _submit(folder: Path, text: str) -> str:
    """Write the script into the folder and submit it; returns the job's number."""
    file = folder / "job.sbatch"
    write_atomic(file, text)
    return _command("sbatch", "--parsable", str(file)).partition(";")[0]  # NUMBER;CLUSTER in a federation


def _show(text: str) -> int:
    """Print the script, and what SLURM says about it."""
    print(text, flush=True)
    said = _test(text) if available() else "not checked by SLURM: there is no sbatch here"
    print(said, file=sys.stderr)
    return 0


def _program() -> Path:
    """The command mup-lightning of this Python's environment. Raises UserError where it is not installed."""
    program = Path(sys.executable).with_name("mup-lightning")
    if not program.is_file():
        raise UserError(f"there is no {program}, which the job would run; pip install this package there")
    return program
