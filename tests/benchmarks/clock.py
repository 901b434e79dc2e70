"""One clock for every training loop: torch's own hook at the begin of any optimizer's step."""

from __future__ import annotations

import time
from itertools import pairwise
from types import TracebackType
from typing import Any

from torch.optim.optimizer import register_optimizer_step_pre_hook

from tests.benchmarks.memory import peak_mb
from tests.benchmarks.processor import OtherPrograms


class StepClock:
    """Times steps from one optimizer step to the next, so that all in between counts: batches, callbacks, logs.

    The loop must run `warmup + steps + 1` steps. What comes after the last one (our validation and checkpoint) is
    neither in the times nor in the peak.

    Args:
        warmup: steps that are not timed.
        steps: timed steps.

    Attributes:
        peak: peak memory in MB at the end of the timed steps.
        others: cores that other programs kept busy during the timed steps.
    """

    def __init__(self, warmup: int, steps: int) -> None:
        self.warmup, self.steps = warmup, steps
        self.peak, self.others = 0.0, 0.0
        self._ticks: list[float] = []

    def __enter__(self) -> StepClock:
        self._handle = register_optimizer_step_pre_hook(self._tick)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle.remove()

    @property
    def seconds(self) -> list[float]:
        """Of each timed step."""
        ticks = self._ticks[self.warmup : self.warmup + self.steps + 1]
        if len(ticks) != self.steps + 1:
            raise RuntimeError(f"{len(self._ticks)} steps were run; {self.warmup + self.steps + 1} are needed")
        return [end - begin for begin, end in pairwise(ticks)]

    def _tick(self, *_: Any) -> None:
        self._ticks.append(time.perf_counter())
        if len(self._ticks) == self.warmup + 1:
            self._processor = OtherPrograms()
        if len(self._ticks) == self.warmup + self.steps + 1:
            self.peak, self.others = peak_mb(), self._processor.cores()
