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
    job, again = os.environ.get("SLURM_JOB_ID"), "submit it again with the same command and resume=auto"
    if job is None:
        raise UserError(f"step {step} is saved, but {signals.VARIABLE} is set outside of a SLURM job; unset it")
    try:
        fields = _this_job(job)
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


def _this_job(job: str) -> dict[str, str]:
    """What SLURM knows of a job; of an array's tasks, one has the number of them all, and all are shown under it.

    Asks SLURM, because variables such as SLURM_ARRAY_TASK_ID may come from a job in which this one was submitted.
    """
    shown = run("scontrol", "show", "job", job).split("\n\n")
    records = [dict(re.findall(r"(\w+)=(\S*)", text)) for text in shown]
    if found := next((fields for fields in records if fields.get("JobId") == job), None):
        return found
    raise UserError(f"scontrol knows no job {job}")


def _is_cancelled(fields: dict[str, str]) -> bool:
    """Whether SLURM is ending the job for another reason than its time limit. Preempted jobs still count as running."""
    if fields["JobState"] != "COMPLETING":
        return fields["JobState"] == "CANCELLED"
    limit = fields["TimeLimit"]
    return not limit[:1].isdigit() or seconds(fields["RunTime"]) < seconds(limit)
