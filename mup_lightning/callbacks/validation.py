"""Validation between steps."""

from __future__ import annotations

import lightning.pytorch as pl

from mup_lightning.callbacks.step import StepCallback, WatchedModule, due
from mup_lightning.callbacks.throughput import Throughput


class Validation(StepCallback):
    """Measures the validation loss every `every` steps and after the last, by the module's `validation_loss`.

    Not Lightning's validation loop: its place in the epoch would have to be saved and restored with every checkpoint,
    and a checkpoint saved between a step and its validation would lose the point.

    Args:
        every: steps between measurements; 0: only at the end.
        throughput: is told to leave out the time.

    Attributes:
        history: (step, loss) pairs of this process's life.
    """

    def __init__(self, every: int, throughput: Throughput) -> None:
        self.every, self.throughput = every, throughput
        self.history: list[tuple[int, float]] = []

    def on_step_end(self, trainer: pl.Trainer, module: WatchedModule, step: int) -> None:
        """See `StepCallback`."""
        if not due(step, self.every, trainer.max_steps):
            return
        with self.throughput.paused():
            loss = module.validation_loss()
        self.history.append((step, loss))
        if trainer.logger is not None:
            trainer.logger.log_metrics({"validation/loss": loss}, step=step)
