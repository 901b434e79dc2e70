"""How a job goes back into the queue after it has saved; and how SLURM's commands are run."""

import os
import re
import subprocess

from mup_lightning import signals
from mup_lightning.errors import UserError
from mup_lightning.slurm.options import seconds


def run(*command: str, script: str | None = None) -> str:
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


def requeue(step: int, first_step: int) -> bool:
    """Put this job back into the queue. Called by one process, after all of them have saved.

    Args:
        step: optimizer steps done and saved.
        first_step: how many of them were done when this process started.

    Returns whether it was requeued: a cancelled job is not. Raises UserError where it would be requeued forever, or
    SLURM refuses.
    """
    job, restarts = _this_job(), int(os.environ.get("SLURM_RESTART_COUNT", "0"))
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
        if _is_cancelled(job):
            print(f"job {job} was cancelled: step {step} is saved, and it does not go back into the queue", flush=True)
            return False
        run("scontrol", "requeue", job)
    except UserError as error:
        raise UserError(
            f"step {step} is saved, but job {job} could not go back into the queue: {error}. To continue, {again}"
        ) from error
    print(f"job {job} goes back into the queue, and continues after step {step}", flush=True)
    return True


def _this_job() -> str:
    """The name of this job alone: SLURM_JOB_ID of one task of an array (slurm.extra --array) names all of its tasks."""
    variables = os.environ
    if "SLURM_ARRAY_TASK_ID" in variables:
        return f"{variables['SLURM_ARRAY_JOB_ID']}_{variables['SLURM_ARRAY_TASK_ID']}"
    return variables["SLURM_JOB_ID"]


def _is_cancelled(job: str) -> bool:
    """Whether SLURM is ending the job for another reason than its time limit. Preempted jobs still count as running."""
    fields = dict(re.findall(r"(JobState|RunTime|TimeLimit)=(\S+)", run("scontrol", "show", "job", job)))
    if fields.get("JobState") != "COMPLETING":
        return fields.get("JobState") == "CANCELLED"
    limit = fields.get("TimeLimit", "")
    return not limit[:1].isdigit() or seconds(fields["RunTime"]) < seconds(limit)
