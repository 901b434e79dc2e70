"""The training curves: loss, learning rate, gradient norm, tokens per second."""

from __future__ import annotations

import lightning.pytorch as pl
import torch

from mup_lightning.callbacks.step import StepCallback, WatchedModule, due
from mup_lightning.callbacks.throughput import Throughput


class Curves(StepCallback):
    """Logs every `every` steps. Losses are added up on the device and copied once per log.

    `train/loss` is the mean over all steps since the last point and all processes;
    `train/lr_factor` is the schedule's factor, the same for all groups.

    Args:
        every: steps between points.
        throughput: where the speed is read.
    """

    def __init__(self, every: int, throughput: Throughput) -> None:
        self.every, self.throughput = every, throughput
        self._sum: torch.Tensor | None = None
        self._steps = 0

    def on_step_end(self, trainer: pl.Trainer, module: WatchedModule, step: int) -> None:
        """See `StepCallback`."""
        loss = module.step_loss()
        self._sum = loss if self._sum is None else self._sum + loss
        self._steps += 1
        if not due(step, self.every, trainer.max_steps):
            return
        mean = trainer.strategy.reduce(self._sum / self._steps, reduce_op="mean")
        self._sum, self._steps = None, 0
        if trainer.logger is None:
            return
        group = trainer.optimizers[0].param_groups[0]
        # The schedule has stepped already: this is the factor of the step to come.
        values = {
            "train/loss": float(mean),
            "train/lr_factor": group["lr"] / group["initial_lr"],
            "train/gradient_norm": float(module.gradient_norm),
            "train/tokens_per_second": self.throughput.tokens_per_second,
            "train/tokens": float(step * self.throughput.tokens_per_step),
        }
        trainer.logger.log_metrics(values, step=step)
