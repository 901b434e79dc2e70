"""The few commands of SLURM that submitting needs."""

from __future__ import annotations

import shutil
import subprocess

from mup_lightning.errors import UserError


def available() -> bool:
    """Whether this machine can submit jobs."""
    return shutil.which("sbatch") is not None


def test(script: str) -> str:
    """Ask SLURM what it would do with a script; nothing is submitted.

    Raises:
        UserError: SLURM would refuse it; with its own words.
    """
    return _run(["sbatch", "--test-only"], script)


def submit(file: str) -> str:
    """Submit a script.

    Returns:
        The job's number.

    Raises:
        UserError: SLURM refuses it; with its own words.
    """
    return _run(["sbatch", "--parsable", file]).partition(";")[0]  # NUMBER;CLUSTER in a federation


def state(job: str) -> str | None:
    """PENDING, RUNNING and so on; None for a job that is over, or unknown, or where there is no SLURM."""
    if not available():
        return None
    done = subprocess.run(["squeue", "-h", "-j", job, "-o", "%T"], capture_output=True, text=True, check=False)
    return done.stdout.split()[0] if done.returncode == 0 and done.stdout.strip() else None


def _run(command: list[str], text: str | None = None) -> str:
    """What a command prints, on either stream."""
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    except OSError as error:
        raise UserError(
            f"{command[0]} cannot be run ({error.strerror}): submit on a machine of the cluster; with --dry (DRY=1) "
            f"the script is printed anywhere"
        ) from error
    said = (done.stdout.strip() + "\n" + done.stderr.strip()).strip()
    if done.returncode:
        raise UserError(f"{command[0]} refuses the job: " + said.replace("sbatch: ", "").replace("\n", "; "))
    return said.removeprefix("sbatch: ")
