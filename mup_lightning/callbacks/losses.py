"""Training and validation loss over all processes, without waiting for the device in every step."""

from typing import Any

import lightning.pytorch as pl
import torch

from mup_lightning.callbacks.step import StepCallback, WatchedModule, due
from mup_lightning.callbacks.throughput import Throughput

KEY = "step_losses"
"""Key of the losses since the last point, in Lightning's part of a checkpoint."""


class Losses(StepCallback):
    """Logs the mean loss since the last point, the schedule's factor and the tokens seen.

    Losses stay on the device. At every point, and where a checkpoint is due, one exchange and one copy bring them to
    the host. Checkpoints hold the losses since the last point, so a resumed run logs the same points.

    Args:
        every: steps between points.
        save_every: steps between checkpoints; 0: only at the end, or when the run is stopped.
        tokens_per_step: over all processes.

    Attributes:
        recent: at a point, the loss of every step since the last one, nats per token, in order; empty between points.
        new: the losses brought to the host in this step, each of them once; empty where none were.
    """

    def __init__(self, every: int, save_every: int, tokens_per_step: int) -> None:
        self.every, self.save_every, self.tokens_per_step = every, save_every, tokens_per_step
        self.recent: list[float] = []
        self.new: list[float] = []
        self._known: list[float] = []
        self._local: list[torch.Tensor] = []

    def on_step_end(self, trainer: pl.Trainer, module: WatchedModule, step: int) -> None:
        """Keep the step's loss, and log at a point; runs before the callbacks that read `recent` and `new`."""
        self._local.append(module.step_loss())
        at_point, before = due(step, self.every, trainer.max_steps), len(self._known)
        self.recent, self.new = [], []
        # A checkpoint must not be saved before its losses have been judged.
        if at_point or due(step, self.save_every, trainer.max_steps) or trainer.should_stop:
            self.new = self._exchanged(trainer)[before:]
        if not at_point:
            return
        self.recent, self._known = self._known, []
        if trainer.logger is not None:
            group = trainer.optimizers[0].param_groups[0]
            values = {
                "train/loss": sum(self.recent) / len(self.recent),
                # The schedule has stepped already: this is the factor of the step to come, the same for all groups.
                "train/lr_factor": group["lr"] / group["initial_lr"],
                "train/tokens": float(step * self.tokens_per_step),
            }
            trainer.logger.log_metrics(values, step=step)

    def _exchanged(self, trainer: pl.Trainer) -> list[float]:
        """The mean over processes of every step's loss since the last point; called by all processes together."""
        if self._local:
            # In float64 the sum of a few float32 values is exact, so the order of the processes does not matter.
            local = torch.stack(self._local).double()
            self._known += trainer.strategy.reduce(local, reduce_op="mean").tolist()
            self._local = []
        return self._known

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the losses since the last point; every process is here, and one of them writes."""
        checkpoint[KEY] = list(self._exchanged(trainer))

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take them up again; checkpoints of early versions have none."""
        self._known = list(checkpoint.get(KEY, []))


class Validation(StepCallback):
    """Measures the validation loss every `every` steps and after the last, by the module's `validation_loss`.

    Not Lightning's validation loop: its place in the epoch would have to be saved and restored with every checkpoint,
    and a checkpoint saved between a step and its validation would lose the point.

    Args:
        every: steps between measurements; 0: only at the end.
        throughput: paused meanwhile.

    Attributes:
        last: the newest loss that this process measured; None before the first.
    """

    def __init__(self, every: int, throughput: Throughput) -> None:
        self.every, self.throughput = every, throughput
        self.last: float | None = None

    def on_step_end(self, trainer: pl.Trainer, module: WatchedModule, step: int) -> None:
        """Measure where it is due."""
        if not due(step, self.every, trainer.max_steps):
            return
        with self.throughput.paused():
            self.last = module.validation_loss()
        if trainer.logger is not None:
            trainer.logger.log_metrics({"validation/loss": self.last}, step=step)
