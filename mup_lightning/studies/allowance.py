"""The cores and the memory that this process may use: of the machine, its control groups and SLURM's job."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_GROUPS = Path("/proc/self/cgroup")


def cores() -> int:
    """Cores that this process may keep busy: at least 1."""
    present = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.floor(min([present, *_quotas()])))


def free_memory() -> int:
    """Bytes that can be had without swapping, or without being killed."""
    return max(0, min([_free_on_machine(), *_free_in_groups(), *_granted_by_slurm()]))


def _quotas() -> Iterator[float]:
    """Cores' worth of time that each control group above us grants."""
    for folder in _folders(""):
        quota, _, period = (_read(folder / "cpu.max") or "max").partition(" ")
        if quota != "max":
            yield int(quota) / int(period)
    for folder in _folders("cpu"):
        granted, every = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        if granted and every and int(granted) > 0:
            yield int(granted) / int(every)


def _free_in_groups() -> Iterator[int]:
    """What each control group above us has left. Its cache of files counts as used there, but gives way."""
    names = {"": ("memory.max", "memory.current"), "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes")}
    for controller, (most, used) in names.items():
        for folder in _folders(controller):
            limit, usage = _read(folder / most), _read(folder / used)
            if limit and usage and limit != "max":
                yield int(limit) - int(usage) + _cache(folder)


def _cache(folder: Path) -> int:
    lines = (_read(folder / "memory.stat") or "").splitlines()
    values = {name: int(value) for name, _, value in (line.partition(" ") for line in lines) if value.isdecimal()}
    return values.get("total_inactive_file", values.get("inactive_file", 0))


def _folders(controller: str) -> Iterator[Path]:
    """Our control group's folder and those above it; inside a container its own alone can be seen.

    Args:
        controller: of version 1; empty: version 2.
    """
    for line in (_read(_GROUPS) or "").splitlines():
        _, controllers, name = line.split(":", 2)
        if controller not in controllers.split(",") or (not controller and controllers):
            continue
        root = _ROOT / controller
        own = root / name.lstrip("/")
        places = [own, *own.parents]
        yield from places[: places.index(root) + 1]


def _granted_by_slurm() -> Iterator[int]:
    """Megabytes of the whole node, or of each core, that SLURM gave the job, whether or not it enforces them."""
    whole, each = os.environ.get("SLURM_MEM_PER_NODE", ""), os.environ.get("SLURM_MEM_PER_CPU", "")
    if whole.isdecimal() and int(whole):
        yield int(whole) << 20
    elif each.isdecimal() and int(each):
        of_job = os.environ.get("SLURM_CPUS_ON_NODE", "")
        yield (int(each) << 20) * (int(of_job) if of_job.isdecimal() else cores())


def _free_on_machine() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _read(file: Path) -> str | None:
    try:
        return file.read_text().strip()
    except OSError:
        return None
