"""The curves of the speed: step time, tokens per second, model FLOPs utilisation."""

from __future__ import annotations

from collections.abc import Callable

import lightning.pytorch as pl
import torch

from mup_lightning.callbacks.panels import Panels
from mup_lightning.callbacks.step import StepCallback, WatchedModule, due
from mup_lightning.callbacks.throughput import Throughput

Peak = Callable[[torch.device], float]
"""A process's device -> its FLOP/s at the most."""


class Speed(StepCallback):
    """Logs every `every` steps: the speed since the last point, and the mean of this process's life.

    MFU is FLOPs per token x tokens/s over the sum of all processes' peaks (Chowdhery et al. 2022, appendix B). What a
    peak is, the caller knows: data sheet or measurement.

    Args:
        every: steps between points.
        throughput: where the time is read; told of every step before this.
        flops_per_token: of forward and backward pass.
        peak: of one process's device; None: no MFU.
    """

    def __init__(self, every: int, throughput: Throughput, flops_per_token: float, peak: Peak | None) -> None:
        self.every, self.throughput, self.flops_per_token, self.peak = every, throughput, flops_per_token, peak
        self._all_peaks: float | None = None
        self._seconds, self._steps = 0.0, 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Learn the peaks: all processes at once, because CPU processes share the machine."""
        if self.peak is not None and trainer.logger is not None:
            own = torch.tensor(self.peak(pl_module.device), dtype=torch.float64, device=pl_module.device)
            self._all_peaks = float(trainer.strategy.reduce(own, reduce_op="sum"))

    def on_step_end(self, trainer: pl.Trainer, module: WatchedModule, step: int) -> None:
        """See `StepCallback`. Before a second step has ended there is nothing to log."""
        if not due(step, self.every, trainer.max_steps):
            return
        seconds, steps = self.throughput.seconds - self._seconds, self.throughput.steps - self._steps
        self._seconds, self._steps = self.throughput.seconds, self.throughput.steps
        if trainer.logger is None or not steps:
            return
        rate = self.throughput.tokens_per_step * steps / seconds
        values = {
            "train/step_seconds": seconds / steps,
            "train/tokens_per_second": rate,
            "train/tokens_per_second/mean": self.throughput.tokens_per_second,
        }
        if self._all_peaks:
            values["train/mfu"] = self.flops_per_token * rate / self._all_peaks
        trainer.logger.log_metrics(values, step=step)

    def panels(self) -> Panels:
        """See `panels`."""
        charts = {
            "tokens per second": ["train/tokens_per_second$"],
            "seconds per step": ["train/step_seconds$"],
        }
        if self.peak is not None:
            charts["MFU: share of the peak FLOP/s that the model uses"] = ["train/mfu$"]
        return {"How fast is it?": {title: ["Multiline", tags] for title, tags in charts.items()}}
