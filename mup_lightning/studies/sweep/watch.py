"""What a sweep watches in a run: the training losses, and whether to go on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import lightning.pytorch as pl
import torch

from mup_lightning.callbacks.step import StepCallback, WatchedModule


class Watch(StepCallback):
    """Keeps the last training losses, on the device, and tells of every step.

    Args:
        max_steps: of the run.
        tell: called with every step done.
        judge_after: the step after which the run is judged; None: never.
        limit: nats; a mean loss above it, over the tenth of the steps before, ends the run.

    Attributes:
        early_loss: the loss that was judged; None before.
        hopeless: whether it was found too high.
        steps: done.
        parameters: of the model.
    """

    def __init__(
        self, max_steps: int, tell: Callable[[int], None], judge_after: int | None = None, limit: float = 0.0
    ) -> None:
        self.tell, self.judge_after, self.limit = tell, judge_after, limit
        self.early_loss: float | None = None
        self.hopeless = False
        self.steps, self.parameters = 0, 0
        self._losses: deque[torch.Tensor] = deque(maxlen=max(1, max_steps // 10))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """See Lightning."""
        self.parameters = sum(parameter.numel() for parameter in pl_module.parameters())

    def on_step_end(self, trainer: pl.Trainer, module: WatchedModule, step: int) -> None:
        """See `StepCallback`."""
        self._losses.append(module.step_loss())
        self.steps = step
        self.tell(step)
        if step == self.judge_after:
            self.early_loss = self.mean(max(1, step // 10))
            if self.early_loss is not None and self.early_loss > self.limit:
                self.hopeless = trainer.should_stop = True

    def mean(self, steps: int | None = None) -> float | None:
        """Mean training loss over so many last steps, at most a tenth of the run; None before the first."""
        losses = list(self._losses)[-steps:] if steps else list(self._losses)
        return float(torch.stack(losses).mean()) if losses else None
