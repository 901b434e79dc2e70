"""The loss of every step, over all processes, without waiting for it in every step."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch

from mup_lightning.callbacks.step import StepCallback, WatchedModule, due

KEY = "step_losses"
"""Of the losses since the last point in Lightning's part of a checkpoint."""


class StepLosses(StepCallback):
    """Keeps losses on the device. At every point, and where a checkpoint is due, one exchange and one copy bring them.

    Checkpoints hold the losses since the last point, so a resumed run has the same points.

    Args:
        every: steps between points.
        save_every: steps between checkpoints; 0: only at the end, or when the run is told to stop.

    Attributes:
        recent: at a point, the loss of every step since the last one, nats per token, in order; empty between points.
        new: where losses are brought, those that never were before, likewise; else empty.
    """

    def __init__(self, every: int, save_every: int = 0) -> None:
        self.every, self.save_every = every, save_every
        self.recent: list[float] = []
        self.new: list[float] = []
        self._known: list[float] = []
        self._local: list[torch.Tensor] = []

    def on_step_end(self, trainer: pl.Trainer, module: WatchedModule, step: int) -> None:
        """See `StepCallback`; comes before the callbacks that read `recent`."""
        self._local.append(module.step_loss())
        at_point, before = due(step, self.every, trainer.max_steps), len(self._known)
        self.recent, self.new = [], []
        # A checkpoint must not be saved before its losses have been judged.
        if at_point or due(step, self.save_every, trainer.max_steps) or trainer.should_stop:
            self.new = self._exchanged(trainer)[before:]
        if at_point:
            self.recent, self._known = self._known, []

    def _exchanged(self, trainer: pl.Trainer) -> list[float]:
        """The mean over processes of every step's loss since the last point; called by all processes together."""
        if self._local:
            # In float64 the sum of a few float32 numbers is exact: who adds what first makes no difference.
            local = torch.stack(self._local).double()
            self._known += trainer.strategy.reduce(local, reduce_op="mean").tolist()
            self._local = []
        return self._known

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """See Lightning; every process is here, and one of them writes."""
        checkpoint[KEY] = list(self._exchanged(trainer))

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """See Lightning. Checkpoints of before this was kept have none."""
        self._known = list(checkpoint.get(KEY, []))
