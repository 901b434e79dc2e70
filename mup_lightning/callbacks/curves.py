"""The training curves: loss, learning rate, tokens."""

from __future__ import annotations

import lightning.pytorch as pl

from mup_lightning.callbacks.losses import StepLosses
from mup_lightning.callbacks.panels import Panels
from mup_lightning.callbacks.step import StepCallback, WatchedModule


class Curves(StepCallback):
    """Logs at every point of the losses.

    `train/loss` is the mean over all steps since the last point and all processes;
    `train/lr_factor` is the schedule's factor, the same for all groups.

    Args:
        losses: where the losses of the steps are read.
        tokens_per_step: over all processes.
    """

    def __init__(self, losses: StepLosses, tokens_per_step: int) -> None:
        self.losses, self.tokens_per_step = losses, tokens_per_step

    def on_step_end(self, trainer: pl.Trainer, module: WatchedModule, step: int) -> None:
        """See `StepCallback`."""
        recent = self.losses.recent
        if not recent or trainer.logger is None:
            return
        group = trainer.optimizers[0].param_groups[0]
        # The schedule has stepped already: this is the factor of the step to come.
        values = {
            "train/loss": sum(recent) / len(recent),
            "train/lr_factor": group["lr"] / group["initial_lr"],
            "train/tokens": float(step * self.tokens_per_step),
        }
        trainer.logger.log_metrics(values, step=step)

    def panels(self) -> Panels:
        """See `panels`."""
        charts = {
            "training loss, nats per token: falls": ["train/loss$"],
            "validation loss, nats per token: falls too": ["validation/loss$"],
            "learning rate over its peak: up in the warm-up, then down": ["train/lr_factor$"],
        }
        return {"Is it learning?": {title: ["Multiline", tags] for title, tags in charts.items()}}
