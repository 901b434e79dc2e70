"""Preemption and time limits: between two steps all processes agree to save and leave."""

from __future__ import annotations

import time

import lightning.pytorch as pl

from mup_lightning import signals
from mup_lightning.callbacks.step import StepCallback, WatchedModule


class Preemption(StepCallback):
    """Reads the flag of `signals` where a step begins or ends, and nowhere else.

    A signal in a forward or backward pass, in the optimizer or while saving changes nothing but the flag. It may reach
    one process only, or some a step earlier than others: the processes vote after every step.

    From the beginning of a step to that of the next one, a process that is told to end does not wait for others for
    ever. The callbacks that come after this one exchange losses and norms: they are in that time. Validation and
    saving, which may take long, are not (`signals.unhurried`).
    """

    def __init__(self) -> None:
        self._begin = 0.0
        self._settled = False
        self._longest: float | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Where a signal has come while the processes started up, no step is made at all."""
        self._vote(trainer)

    def on_step_start(self, trainer: pl.Trainer, module: WatchedModule, step: int) -> None:
        """After TERM, the next one must come. Nobody knows when until two are done: the first compiles, connects."""
        self._begin = time.monotonic()
        signals.expect(None if self._longest is None else 5.0 + 5.0 * self._longest)

    def on_step_end(self, trainer: pl.Trainer, module: WatchedModule, step: int) -> None:
        """All processes agree on stopping after the same step."""
        self._vote(trainer)
        if self._settled:
            self._longest = max(self._longest or 0.0, time.monotonic() - self._begin)
        self._settled = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """No step comes after the last one."""
        signals.expect(None)

    def _vote(self, trainer: pl.Trainer) -> None:
        if trainer.strategy.reduce_boolean_decision(signals.received(), all=False):
            trainer.should_stop = True
