"""Ctrl-C and SIGTERM: finish the step, save, and leave, instead of dying in the middle of an update."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

import lightning.pytorch as pl

from mup_lightning.callbacks.step import StepCallback, WatchedModule


class Interrupt(StepCallback):
    """The first signal sets a flag that is read between steps; a second one acts at once, as it would have without us.

    Attributes:
        requested: whether a signal has come.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take over the signals, after Lightning has installed its own handlers."""
        for number in self.SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._restore()

    def on_step_end(self, trainer: pl.Trainer, module: WatchedModule, step: int) -> None:
        """All processes agree on stopping after the same step."""
        if trainer.strategy.reduce_boolean_decision(self.requested, all=False):
            self.requested = trainer.should_stop = True

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Give the signals back."""
        self._restore()

    def _restore(self) -> None:
        while self._previous:
            number, handler = self._previous.popitem()
            signal.signal(number, handler)
