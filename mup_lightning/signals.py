"""The signals by which SLURM tells a job that its time is over, remembered from a process's first moment on.

Imports nothing heavy: importing torch and Lightning takes seconds, and a signal that comes meanwhile must neither kill
the process nor be forgotten. The signals are blocked in the main thread, and so in all threads that it starts later,
and one thread waits for them: no handler, ours or a library's, ever runs in the middle of anything.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

VARIABLE = "MUP_LIGHTNING_REQUEUES"
"""Set by a job's script: how often the job may go back into the queue. Without it, signals are nobody's business."""

SIGNALS = (signal.SIGUSR1, signal.SIGTERM)
"""USR1 some time before the time limit (`sbatch --signal`), TERM on preemption and at every end."""

_received: list[int] = []
_deadline: float | None = None


def in_job() -> bool:
    """Whether a job's script asks for saving and going back into the queue."""
    return VARIABLE in os.environ


def catch() -> None:
    """From now on the signals do nothing but set a flag. To be called by the main thread, before any other starts."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    for number in SIGNALS:  # the job's script has let them be ignored until now
        signal.signal(number, signal.SIG_DFL)
    threading.Thread(target=_listen, name="stop signals", daemon=True).start()


def received() -> bool:
    """Whether one has come."""
    return bool(_received)


def expect(seconds: float | None) -> None:
    """Say how soon this is to be called again if TERM comes; None: whenever.

    TERM comes to the survivors of a dead process too. They wait for it in an exchange that never ends, and SLURM would
    let them, for another half minute by default.
    """
    global _deadline
    _deadline = None if seconds is None else time.monotonic() + seconds


@contextmanager
def unhurried() -> Iterator[None]:
    """What is done inside may take as long as it likes, and what was expected is expected so much later."""
    global _deadline
    begin, before = time.monotonic(), _deadline
    _deadline = None
    yield
    # Not after an error: what follows one is no step.
    _deadline = None if before is None else before + time.monotonic() - begin


def _listen() -> None:
    while signal.sigwait(SIGNALS) != signal.SIGTERM:
        _received.append(signal.SIGUSR1)
    _received.append(signal.SIGTERM)
    while True:
        time.sleep(0.5)
        deadline = _deadline
        if deadline is not None and time.monotonic() > deadline:
            print("told to end (SIGTERM), but the step does not: another process must be gone", file=sys.stderr)
            sys.stderr.flush()
            os._exit(1)
