"""Tokens per second of the training steps alone: validation, checkpoints and start-up are not in it."""

from __future__ import annotations

import time

import lightning.pytorch as pl

from mup_lightning.callbacks.step import StepCallback, WatchedModule


class Throughput(StepCallback):
    """Measures; others read it. On a GPU no synchronisation is forced: the guard on the gradient norm waits anyway.

    Args:
        tokens_per_step: over all processes.

    Attributes:
        seconds: time spent in steps so far, without the first one (warm-up, allocation, compilation).
        steps: steps counted in it.
    """

    def __init__(self, tokens_per_step: int) -> None:
        self.tokens_per_step = tokens_per_step
        self.seconds, self.steps = 0.0, 0
        self._begin = 0.0
        self._first = True

    @property
    def tokens_per_second(self) -> float:
        """Mean over all steps counted so far; 0 before the second step has ended."""
        return self.tokens_per_step * self.steps / self.seconds if self.seconds else 0.0

    def on_step_start(self, trainer: pl.Trainer, module: WatchedModule, step: int) -> None:
        """See `StepCallback`."""
        self._begin = time.perf_counter()

    def on_step_end(self, trainer: pl.Trainer, module: WatchedModule, step: int) -> None:
        """See `StepCallback`."""
        if not self._first:
            self.seconds += time.perf_counter() - self._begin
            self.steps += 1
        self._first = False
