"""Jobs: what training would refuse is refused before they are submitted, their scripts, how they requeue themselves."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

from mup_lightning import signals
from mup_lightning.config.schema import Config
from mup_lightning.errors import UserError
from mup_lightning.files import read_json, write_atomic, write_json, yaml_text
from mup_lightning.slurm.options import WORD, SlurmConfig, seconds

RECORD = "job.json"
"""File in the folder `slurm` of a run, with the number of its last job."""

FREE_PORT = "import socket; s = socket.socket(); s.bind(('', 0)); print(s.getsockname()[1])"


def submit_training(config: Config, slurm: SlurmConfig, *, dry: bool) -> None:
    """Submit a training, or only print its script. Raises UserError for what training or SLURM would refuse."""
    check(config, slurm)
    from mup_lightning.training.run import plain

    config.run.resume = "auto"
    folder, trainer = Path(config.run.root) / config.run.name / "slurm", config.trainer
    command = shlex.join([str(_program()), "train", "-c", str(folder / "config.yaml")])
    name, processes = slurm.job or config.run.name.replace("/", "-"), f"--ntasks-per-node={trainer.devices}"
    text = f"""{_head(slurm, folder / "%j.log", name, "USR1", f"--nodes={trainer.nodes}", processes)}
export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n1)
# This script runs on the first node too, so that it can ask for a port that is free there.
export MASTER_PORT=$({shlex.quote(sys.executable)} -c "{FREE_PORT}")
export OMP_NUM_THREADS=${{SLURM_CPUS_PER_TASK:-1}}

# On USR1 (the time limit is near) or TERM (preempted): finish the step, save, requeue, at most this often.
export {signals.VARIABLE}={slurm.max_requeues}

# Both are ignored until the training has its own handlers; one process that dies ends them all.
srun --kill-on-bad-exit=1{_cpus(slurm)} bash -c 'trap "" USR1 TERM; exec "$@"' task \\
  {command}
"""
    # A snapshot: a recipe that changes while the job waits, or between two restarts, changes nothing.
    snapshot = yaml_text(plain(asdict(config)))
    if job := _launch(folder, text, dry, {"config.yaml": snapshot}):
        write_json(folder / RECORD, {"job": job})
        each = f"{trainer.devices} {'GPUs' if slurm.gpus else 'CPU processes'}"
        print(
            f"job {job}: {config.run.name} on {trainer.nodes} x {each}\n"
            f"  watch     squeue -j {job}; tail -F {folder}/{job}.log\n"
            f"  stop      scancel {job}    (saves; the same command with resume=auto submits the rest)\n"
            f"  requeue   scancel --signal=USR1 {job}    (saves, goes back into the queue)\n"
            f"  script    {folder}/job.sbatch"
        )


def submit_sweep(sweep: Path, command: list[str], slurm: SlurmConfig, *, out: Path, tasks: int, dry: bool) -> None:
    """Submit a sweep, which has been checked, as an array job whose tasks share its configurations.

    `command` runs it, without --shard; `out` is the folder of its table. Raises UserError where SLURM would refuse it.
    """
    _plain_names({"--out": str(out)})
    folder = out / "slurm"
    array = (f"--array=1-{tasks}", "--nodes=1", "--ntasks-per-node=1")
    text = f"""{_head(slurm, folder / "%A_%a.log", slurm.job or f"sweep-{out.name}", "TERM", *array)}
status=0
srun{_cpus(slurm)} {shlex.join([str(_program()), *command])} --shard "$SLURM_ARRAY_TASK_ID/{tasks}" || status=$?

# 130: stopped by TERM (the time limit is near, or preempted). Requeue: what is finished is not run again.
# The task, not $SLURM_JOB_ID: one of the tasks has the number of the whole array.
if [ "$status" = 130 ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {slurm.max_requeues} ]; then
  scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"
fi
exit "$status"
"""
    if job := _launch(folder, text, dry, {}):
        print(
            f"job {job}: {tasks} tasks of {sweep}, each on "
            f"{f'{slurm.gpus} GPUs' if slurm.gpus else 'CPUs alone (--slurm.gpus N: GPUs)'}; table {out}/results.csv\n"
            f"  watch     squeue -j {job}; tail -F {folder}/{job}_1.log\n"
            f"  stop      scancel {job}    (submit it again to continue)\n"
            f"  script    {folder}/job.sbatch"
        )


def check(config: Config, slurm: SlurmConfig) -> None:
    """Set in the configuration what the cluster decides: devices, accelerator, precision.

    Raises UserError where the two contradict each other, for what `train` would refuse, and if the run has a job.
    """
    from mup_lightning.data.datamodule import TokenDataModule
    from mup_lightning.data.sampler import accumulation_steps
    from mup_lightning.plan.plan import plan
    from mup_lightning.training.run import RunFolder, identity_of, resume_from
    from mup_lightning.training.trainer import resolve_precision

    gpus, trainer = slurm.gpus, config.trainer
    if gpus is None:
        raise UserError(
            "slurm.gpus is not set: set how many GPUs per node to use (--slurm.gpus 8); "
            "0 trains on CPUs, with trainer.devices processes on each node"
        )
    accelerator: Literal["gpu", "cpu"] = "gpu" if gpus else "cpu"
    if trainer.accelerator not in ("auto", accelerator):
        raise UserError(f"slurm.gpus is {gpus}, but trainer.accelerator is {trainer.accelerator}; leave that out")
    if gpus and trainer.devices not in (1, gpus):
        raise UserError(
            f"slurm.gpus is {gpus}, but trainer.devices is {trainer.devices}; leave the latter out: a job has one "
            f"process for each GPU"
        )
    _plain_names({"run.root": config.run.root, "run.name": config.run.name})
    if config.run.resume not in (None, "last", "auto"):
        raise UserError(
            f"run.resume is {config.run.resume}; a job continues its own run only: last, auto, or leave it out. "
            f"To start from another run's checkpoint, train the first steps with mup-lightning train"
        )
    config.trainer = replace(trainer, accelerator=accelerator, devices=gpus or trainer.devices)
    resolve_precision(config.trainer)
    data, trainer = config.data, config.trainer
    plan(config)
    micro_batch = 1 if data.micro_batch == "auto" else data.sequences
    accumulation_steps(data.batch_size, micro_batch, trainer.devices * trainer.nodes)
    # Shards must be there and of the right length; their contents are compared when training starts.
    checked = replace(data, verify=False, micro_batch=micro_batch)
    corpora = TokenDataModule(checked, config.model.context, config.seed, trainer.max_steps).corpora
    folder = RunFolder(config)
    refuse_second_job(folder.path)
    resume_from(config, folder, identity_of(config, corpora))


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


def _plain_names(names: dict[str, str]) -> None:
    """Raise UserError for a name that would need quoting in an #SBATCH line."""
    for what, name in {**names, "the working directory": str(Path.cwd())}.items():
        if not WORD.fullmatch(name):
            raise UserError(f"{what} is {name!r}; a job needs a name without blanks, quotes, backslashes and %")


def _head(slurm: SlurmConfig, log: Path, name: str, signal: str, *more: str) -> str:
    """The #SBATCH lines, with `more`, and the site's own shell lines; `signal` is sent before the time limit."""
    asked = {
        "--gres": f"{slurm.gres}:{slurm.gpus}" if slurm.gpus else None,
        "--cpus-per-task": slurm.cpus,
        "--mem": slurm.memory,
        "--time": slurm.time,
        "--partition": slurm.partition,
        "--account": slurm.account,
        "--qos": slurm.qos,
        "--job-name": name,
        "--chdir": Path.cwd(),
        "--output": log,
        "--open-mode": "append",
        "--signal": f"{signal}@{slurm.signal_seconds}",
    }
    options = [f"{option}={value}" for option, value in asked.items() if value is not None]
    options = [f"#SBATCH {option}" for option in [*options, *more, "--requeue", *slurm.extra]]
    return "\n".join(["#!/bin/bash", *options, "", *slurm.setup])


def _cpus(slurm: SlurmConfig) -> str:
    """Since SLURM 22.05, srun does not take this option over from sbatch."""
    return f" --cpus-per-task={slurm.cpus}" if slurm.cpus else ""


def available() -> bool:
    """Whether this machine can submit jobs."""
    return shutil.which("sbatch") is not None


def _launch(folder: Path, text: str, dry: bool, files: dict[str, str]) -> str | None:
    """Write a script and `files` into a folder and submit it; returns the job's number. `dry`: only print it."""
    if dry:
        print(text, flush=True)
        tested = run("sbatch", "--test-only", script=text) if available() else "not checked by SLURM: no sbatch here"
        print(tested, file=sys.stderr)
        return None
    run("sbatch", "--test-only", script=text)  # nothing is written where SLURM would refuse it
    for name, content in {**files, "job.sbatch": text}.items():
        write_atomic(folder / name, content)
    return run("sbatch", "--parsable", str(folder / "job.sbatch")).partition(";")[0]  # NUMBER;CLUSTER in a federation


def _program() -> Path:
    """The command mup-lightning of this Python's environment. Raises UserError where it is not installed."""
    program = Path(sys.executable).with_name("mup-lightning")
    if not program.is_file():
        raise UserError(f"there is no {program}, which the job would run; pip install this package there")
    return program


def run(*command: str, script: str | None = None) -> str:
    """The output of a SLURM command, both streams; raises UserError, which quotes it, where it is missing or fails."""
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


def requeue(step: int, first_step: int) -> bool:
    """Put this job back into the queue. Called by one process, after all of them have saved.

    `step` optimizer steps are done, `first_step` of them before this process started. Returns whether it was requeued:
    a cancelled job is not. Raises UserError where it would be requeued forever, or SLURM refuses.
    """
    job, again = os.environ.get("SLURM_JOB_ID"), "submit it again with the same command and resume=auto"
    if job is None:
        raise UserError(f"step {step} is saved, but {signals.VARIABLE} is set outside of a SLURM job; unset it")
    try:
        # SLURM itself is asked, because variables such as SLURM_ARRAY_TASK_ID may come from a job in which this one was
        # submitted. Of an array's tasks, one has the number of them all, and all are shown under it.
        shown = run("scontrol", "show", "job", job).split("\n\n")
        records = (dict(re.findall(r"(\w+)=(\S*)", text)) for text in shown)
        fields = next((record for record in records if record.get("JobId") == job), None)
        if fields is None:
            raise UserError(f"scontrol knows no job {job}")
        if _is_cancelled(fields):
            print(f"job {job} was cancelled: step {step} is saved, and it does not go back into the queue", flush=True)
            return False
        restarts = int(fields["Restarts"])
        if restarts and step == first_step:
            raise UserError(
                "it has made no step since it was requeued, so another requeue would not help; ask for more time "
                "(--slurm.time), or for a partition where it is not preempted so soon"
            )
        if restarts >= int(os.environ[signals.VARIABLE]):
            raise UserError(f"it has been requeued {restarts} times, which is the limit (slurm.max_requeues)")
        task = fields.get("ArrayTaskId", "")
        run("scontrol", "requeue", f"{fields['ArrayJobId']}_{task}" if task.isdecimal() else job)
    except UserError as error:
        raise UserError(
            f"step {step} is saved, but job {job} cannot go back into the queue: {error}. To continue, {again}"
        ) from error
    print(f"job {job} goes back into the queue, and continues after step {step}", flush=True)
    return True


def _is_cancelled(fields: dict[str, str]) -> bool:
    """Whether SLURM is ending the job for another reason than its time limit. Preempted jobs still count as running."""
    if fields["JobState"] != "COMPLETING":
        return fields["JobState"] == "CANCELLED"
    limit = fields["TimeLimit"]
    return not limit[:1].isdigit() or seconds(fields["RunTime"]) < seconds(limit)
