"""Lightning's hooks count micro-batches; what callbacks do happens once per optimizer step."""

from collections.abc import Mapping
from typing import Any, Protocol, cast

import lightning.pytorch as pl
import torch

from mup_lightning.model.taps import Recorder
from mup_lightning.optim.optimizer import HybridOptimizer


class WatchedModule(Protocol):
    """What callbacks may ask of the LightningModule that trains; see `training.module.GPT2Module`."""

    recorder: Recorder | None
    hybrid: HybridOptimizer
    gradient_norm: torch.Tensor

    @property
    def device(self) -> torch.device:
        """This process's device."""
        ...

    def step_loss(self) -> torch.Tensor:
        """Mean loss of this process's share of the current step, 0-dim, on the device."""
        ...

    def validation_loss(self) -> float:
        """Mean loss over the validation tokens, the same on all processes."""
        ...


class StepCallback(pl.Callback):
    """Turns micro-batch hooks into step hooks. Steps are counted from 1: `step` is the one begun or just finished."""

    def on_step_start(self, trainer: pl.Trainer, module: WatchedModule, step: int) -> None:
        """Before the first micro-batch of an optimizer step."""

    def on_step_end(self, trainer: pl.Trainer, module: WatchedModule, step: int) -> None:
        """After the optimizer and the schedule have stepped: the only place where a state may be saved."""

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Call `on_step_start` where a step begins."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self.on_step_start(trainer, cast(WatchedModule, pl_module), trainer.global_step + 1)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Call `on_step_end` where a step ends."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.on_step_end(trainer, cast(WatchedModule, pl_module), trainer.global_step)


def due(step: int, every: int, last: int) -> bool:
    """Whether something done every `every` steps (0: only at the end) is due after step `step` of `last`."""
    return step == last or (every > 0 and step % every == 0)


def log(trainer: pl.Trainer, values: Mapping[str, float], step: int) -> None:
    """Log the values, where there is a logger."""
    if trainer.logger is not None:
        trainer.logger.log_metrics(dict(values), step=step)
