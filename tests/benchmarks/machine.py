"""What the figures were measured on: without it they mean nothing."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from mup_lightning.versions import versions


def machine() -> dict[str, Any]:
    """Processor, "cores" this process may use, "memory_mb", "load" (mean over the last minute), and versions."""
    return {
        "processor": _processor(),
        "cores": cores(),
        "memory_mb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e6),
        "system": f"{platform.system()} {platform.machine()}",
        "load": round(os.getloadavg()[0], 2),
        "versions": versions(),
    }


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"
