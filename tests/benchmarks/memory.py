"""How much memory this process takes."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def peak_mb() -> float:
    """The largest resident memory of this process so far, in MB (10^6 bytes): code, imports and data together.

    On Linux from the kernel's high-water mark of this very program: `ru_maxrss` would begin with the parent's.
    """
    return _status_mb("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_UNIT / 1e6


def resident_mb() -> float:
    """The resident memory now, in MB; where the system does not tell it, the peak."""
    return _status_mb("VmRSS") or peak_mb()


def reset_peak() -> bool:
    """Let `peak_mb` count from now on. False where the system cannot (all but Linux), and nothing has changed."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True


_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024


def _status_mb(key: str) -> float | None:
    if not _STATUS.exists():
        return None
    lines = (line.split() for line in _STATUS.read_text().splitlines())
    return next((int(words[1]) * 1024 / 1e6 for words in lines if words and words[0] == f"{key}:"), None)
