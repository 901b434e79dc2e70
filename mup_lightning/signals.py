"""The signals by which SLURM ends a job, recorded from the first moment of a process.

Imports nothing heavy: importing torch and Lightning takes seconds, and a signal that arrives in that time must neither
kill the process nor get lost. The signals are blocked in the main thread, and therefore in all threads that it starts
later, and one thread waits for them: no handler, of this package or of a library, ever interrupts other code.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

VARIABLE = "MUP_LIGHTNING_REQUEUES"
"""Set by a job's script: how often the job may go back into the queue. Without it, signals keep their defaults."""

SIGNALS = (signal.SIGUSR1, signal.SIGTERM)
"""USR1: some time before the time limit (`sbatch --signal`). TERM: on preemption, and at every end of a job."""

_received: list[int] = []
_deadline: float | None = None


def in_job() -> bool:
    """Whether this process runs in a job that saves and goes back into the queue."""
    return VARIABLE in os.environ


def catch() -> None:
    """Record the signals from now on. Must be called in the main thread, before any other thread starts."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    for number in SIGNALS:  # which the job's script has ignored until now
        signal.signal(number, signal.SIG_DFL)
    threading.Thread(target=_listen, name="stop signals", daemon=True).start()


def received() -> bool:
    """Whether a signal has arrived."""
    return bool(_received)


def expect(seconds: float | None) -> None:
    """Set how many seconds from now a process that has received TERM ends itself, unless this is called again.

    TERM also reaches the survivors of a dead process. They wait for it in a collective that never ends, and SLURM would
    wait for them for another half minute by default.

    Args:
        seconds: None: no limit.
    """
    global _deadline
    _deadline = None if seconds is None else time.monotonic() + seconds


@contextmanager
def unhurried() -> Iterator[None]:
    """Suspend the limit of `expect` inside the block, and extend it by the time that the block took."""
    global _deadline
    begin, before = time.monotonic(), _deadline
    _deadline = None
    yield
    # Not after an error, which no step follows.
    _deadline = None if before is None else before + time.monotonic() - begin


def _listen() -> None:
    while signal.sigwait(SIGNALS) != signal.SIGTERM:
        _received.append(signal.SIGUSR1)
    _received.append(signal.SIGTERM)
    while True:
        time.sleep(0.5)
        deadline = _deadline
        if deadline is not None and time.monotonic() > deadline:
            print("received SIGTERM, but the step does not end: another process must have died", file=sys.stderr)
            sys.stderr.flush()
            os._exit(1)
