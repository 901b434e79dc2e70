"""Measuring in fresh processes: allocator, imports and peak memory of one contender never touch another's."""

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import psutil
from torch.optim.optimizer import register_optimizer_step_pre_hook

from mup_lightning.errors import UserError
from tests.benchmarks.harness import Settings
from tests.distributed.launch import as_torchrun

UNTUNED = {"THP_MEM_ALLOC_ENABLE": "0"}
"""Torch's allocator as it is without us."""

MAPPED = UNTUNED | {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""Maps every large tensor on its own, so that the kernel's high-water mark counts exactly what is alive."""

_ALLOCATOR = ("THP_MEM_ALLOC_ENABLE", "MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
"""Variables of the caller that would change a contender's allocator, by their beginnings."""


def measure(
    function: Callable[..., Any],
    settings: Settings,
    *,
    processes: int = 1,
    environment: dict[str, str] | None = None,
    **arguments: Any,
) -> list[Any]:
    """Call a function in fresh Pythons, which find each other as torchrun's would (RANK, MASTER_ADDR, ...).

    It is at the top of a module, and takes the settings, and the arguments by name; these and what it returns are plain
    JSON values. `environment` has variables of each process. Returns what each returned, in order of their ranks.
    Raises UserError, with its last words, where one failed; the others are ended.
    """
    variables = {key: value for key, value in os.environ.items() if not key.startswith(_ALLOCATOR)}
    variables |= {"OMP_NUM_THREADS": str(settings.threads), "CUDA_VISIBLE_DEVICES": ""} | (environment or {})
    name = f"{function.__module__}:{function.__qualname__}"
    with tempfile.TemporaryDirectory(prefix="mup-lightning-bench-") as folder:
        answers = [Path(folder) / f"{rank}.json" for rank in range(processes)]
        running = []
        try:
            for answer, own in zip(answers, as_torchrun(processes), strict=True):
                words = json.dumps([asdict(settings), arguments])
                with answer.with_suffix(".err").open("wb") as errors:
                    command = [sys.executable, "-m", __name__, name, words, str(answer)]
                    streams = {"stdout": subprocess.DEVNULL, "stderr": errors}
                    running.append(subprocess.Popen(command, env=variables | own, **streams))
            # The first failure ends all: the others would wait for it for minutes.
            while any(run.poll() is None for run in running) and not any(run.poll() for run in running):
                time.sleep(0.05)
            failed = [rank for rank, run in enumerate(running) if run.poll()]
        finally:
            for run in running:
                run.kill()
                run.wait()
        for rank in failed:
            last = "\n".join(answers[rank].with_suffix(".err").read_text(errors="replace").splitlines()[-15:])
            raise UserError(f"benchmark process {name} ended with status {running[rank].returncode}:\n{last}")
        return [json.loads(answer.read_text()) for answer in answers]


def resident_mb() -> float:
    """Resident memory of this process, in MB (10^6 bytes)."""
    return psutil.Process().memory_info().rss / 1e6


def peak_mb() -> float:
    """The largest resident memory of this process since it, or the work of `peak_of`, began; Linux alone.

    The kernel's high-water mark of this very program: `ru_maxrss` would begin with the parent's.
    """
    words = Path("/proc/self/status").read_text().split()
    return int(words[words.index("VmHWM:") + 1]) * 1024 / 1e6


def peak_of(work: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[Any, float]:
    """What some work returns, and resident memory at its peak beyond what there was before it, in MB."""
    before = resident_mb()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    found = work(*arguments, **options)
    return found, peak_mb() - before


class StepClock:
    """Times steps from one optimizer step to the next, so that all in between counts: batches, callbacks, logs.

    As a context manager: torch's own hook drives it, at the beginning of any optimizer's step. The loop inside must run
    `warmup + steps + 1` steps. What comes after the last one (our validation and checkpoint) is neither in the times
    nor in the peak.

    Attributes:
        peak_mb: peak memory at the end of the timed steps.
    """

    def __init__(self, warmup: int, steps: int, now: Callable[[], float] = time.perf_counter) -> None:
        self.warmup, self.steps, self.now, self.peak_mb = warmup, steps, now, 0.0
        self._ticks: list[float] = []

    def __enter__(self) -> Self:
        self._handle = register_optimizer_step_pre_hook(self._tick)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def _tick(self, *_: Any) -> None:
        self._ticks.append(self.now())
        if len(self._ticks) == self.warmup + self.steps + 1:
            self.peak_mb = peak_mb()

    @property
    def seconds(self) -> list[float]:
        """Of each timed step."""
        ticks = self._ticks[self.warmup : self.warmup + self.steps + 1]
        if len(ticks) != self.steps + 1:
            raise RuntimeError(f"{len(self._ticks)} steps were run; {self.warmup + self.steps + 1} are needed")
        return [end - begin for begin, end in pairwise(ticks)]


def main(name: str, words: str, answer: str) -> None:
    """One of the fresh processes."""
    from mup_lightning.training import tune_allocator

    tune_allocator()
    module, function = name.split(":")
    settings, arguments = json.loads(words)
    found = getattr(importlib.import_module(module), function)(Settings(**settings), **arguments)
    Path(answer).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
