"""How long training takes: from the end of a step to the end of the next one, without validation and checkpoints."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import lightning.pytorch as pl

from mup_lightning import signals
from mup_lightning.callbacks.step import StepCallback, WatchedModule


class Throughput(StepCallback):
    """Measures; others read it.

    Waiting for data, logging and measuring are in the time: they slow training down. The clock is read where the
    optimizer has been told to step. On a GPU it may not have done so yet, and no synchronisation is forced; but every
    step's guard on the gradient norm waits for the step before it, so that a mean over several steps is right to the
    fraction of one optimizer step that moved from one interval into the next.

    Args:
        tokens_per_step: over all processes.

    Attributes:
        seconds: time spent in steps so far, without the first one (warm-up, allocation, compilation).
        steps: steps counted in it.
    """

    def __init__(self, tokens_per_step: int) -> None:
        self.tokens_per_step = tokens_per_step
        self.seconds, self.steps = 0.0, 0
        self._begin: float | None = None

    @property
    def tokens_per_second(self) -> float:
        """Mean over all steps counted so far; 0 before the second step has ended."""
        return self.tokens_per_step * self.steps / self.seconds if self.seconds else 0.0

    def on_step_end(self, trainer: pl.Trainer, module: WatchedModule, step: int) -> None:
        """See `StepCallback`."""
        now = time.perf_counter()
        if self._begin is not None:
            self.seconds += now - self._begin
            self.steps += 1
        self._begin = now

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out what is done inside: it belongs to no step, and nobody knows how long it takes."""
        begin = time.perf_counter()
        try:
            with signals.unhurried():
                yield
        finally:
            if self._begin is not None:
                self._begin += time.perf_counter() - begin
