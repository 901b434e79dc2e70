"""The short form of `python -m tests.distributed.kills`: every kind of work once, by its own command."""

import subprocess
import sys


def test_killed_work_ends_as_if_it_had_not_been_killed():
    command = [sys.executable, "-m", "tests.distributed.kills", "--kills", "11"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "11 of 11 kills recovered" in done.stdout
