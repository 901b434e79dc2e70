"""A job that was told to stop goes back into SLURM's queue, to continue from what it has just saved."""

from __future__ import annotations

import os
import re
import subprocess

from mup_lightning import signals
from mup_lightning.errors import UserError


def requeue(step: int, first_step: int) -> bool:
    """Put this job back into the queue. Called by one process, when all of them have saved.

    Args:
        step: optimizer steps done and saved.
        first_step: how many of them were done when this process started.

    Returns:
        Whether it was requeued; a job that somebody has cancelled is not.

    Raises:
        UserError: it would go on like this for ever, or SLURM refuses.
    """
    job, restarts = os.environ["SLURM_JOB_ID"], int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    limit = int(os.environ[signals.VARIABLE])
    if restarts and step == first_step:
        raise UserError(
            f"job {job} was stopped at step {step} and has made no step since it was requeued, so another requeue "
            f"would be no use. Ask for more time (slurm.time, or TIME=), or for a partition where it is not "
            f"preempted so soon, and submit it again with --run.resume auto (RESUME=auto)"
        )
    if restarts >= limit:
        raise UserError(
            f"job {job} has been requeued {restarts} times, which is the limit (slurm.max_requeues); step {step} is "
            f"saved. Submit it again with --run.resume auto (RESUME=auto) to go on"
        )
    if _is_cancelled(job):
        print(f"job {job} was cancelled: step {step} is saved, and it does not go back into the queue", flush=True)
        return False
    _scontrol("requeue", job)
    print(f"job {job} goes back into the queue, and continues after step {step}", flush=True)
    return True


def _is_cancelled(job: str) -> bool:
    """Whether SLURM is ending the job for another reason than its time limit. Preempted jobs still count as running."""
    text = _scontrol("show", "job", job)
    fields = dict(re.findall(r"(JobState|RunTime|TimeLimit)=(\S+)", text))
    if fields.get("JobState") != "COMPLETING":
        return fields.get("JobState") == "CANCELLED"
    limit = fields.get("TimeLimit", "")
    return not limit[:1].isdigit() or seconds(fields["RunTime"]) < seconds(limit)


def seconds(text: str) -> int:
    """Seconds of SLURM's [days-]hours:minutes:seconds."""
    days, _, clock = text.rpartition("-")
    hours, minutes, rest = (int(part) for part in clock.split(":"))
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + rest


def _scontrol(*arguments: str) -> str:
    """What scontrol prints.

    Raises:
        UserError: it is not there, or refuses.
    """
    command = f"scontrol {' '.join(arguments)}"
    try:
        done = subprocess.run(["scontrol", *arguments], capture_output=True, text=True, check=False)
    except OSError as error:
        raise UserError(_by_hand(f"{command} cannot be run ({error})")) from error
    if done.returncode:
        raise UserError(_by_hand(f"{command} failed ({done.stderr.strip() or done.returncode})"))
    return done.stdout


def _by_hand(problem: str) -> str:
    return (
        f"the run is saved, but the job could not go back into the queue: {problem}. "
        f"Submit it again with --run.resume auto (RESUME=auto)"
    )
