"""Whether this process has the processor to itself: other programs are the largest error of a benchmark."""

from __future__ import annotations

import os
import time
from pathlib import Path

_STAT = Path("/proc/stat")


class OtherPrograms:
    """Counts, from its making on, the processor time of all but this process and those that it has waited for."""

    def __init__(self) -> None:
        self._begin = (time.perf_counter(), _others_seconds())

    def cores(self) -> float:
        """How many cores other programs kept busy on average; 0 where the system does not tell."""
        seconds, others = time.perf_counter() - self._begin[0], _others_seconds() - self._begin[1]
        return max(0.0, others / seconds) if seconds > 0 else 0.0


def _others_seconds() -> float:
    if not _STAT.exists():
        return 0.0
    user, nice, system, _, _, irq, softirq, steal = map(int, _STAT.read_text().split("\n", 1)[0].split()[1:9])
    busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    own = os.times()
    return busy - sum(own[:4])  # user and system, of its own and of the processes that it has waited for
