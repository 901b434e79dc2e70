"""Stopping between two steps, when all processes have agreed to: on Ctrl-C, SIGTERM, preemption or a time limit."""

import signal
import time
from types import FrameType
from typing import Any

import lightning.pytorch as pl

from mup_lightning import signals
from mup_lightning.callbacks.step import StepCallback, WatchedModule


class Stopping(StepCallback):
    """A signal only sets a flag; after every step the processes vote, and stop together if any of them has it set.

    In a SLURM job signals are caught by `signals`. Elsewhere this takes Ctrl-C and SIGTERM: the first one asks for a
    stop, a second one acts at once, as it would without us.

    In a job, a process that received SIGTERM does not wait for the others forever, except in validation and saving,
    which may take long (`signals.unhurried`).
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self._requested = False
        self._previous: dict[int, Any] = {}
        self._begin = 0.0
        self._warmed_up = False
        self._longest: float | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take over the signals, after Lightning; make no step at all where one has come during start-up."""
        if not signals.in_job():
            for number in self.SIGNALS:
                self._previous[number] = signal.signal(number, self._handle)
        self._vote(trainer)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._requested = True
        self._restore()

    def on_step_start(self, trainer: pl.Trainer, module: WatchedModule, step: int) -> None:
        """Set how long this step may take after SIGTERM; unknown until two are done, as the first one compiles."""
        self._begin = time.monotonic()
        signals.expect(None if self._longest is None else 5.0 + 5.0 * self._longest)

    def on_step_end(self, trainer: pl.Trainer, module: WatchedModule, step: int) -> None:
        """Agree on stopping after the same step, and learn how long a step takes."""
        self._vote(trainer)
        if self._warmed_up:
            self._longest = max(self._longest or 0.0, time.monotonic() - self._begin)
        self._warmed_up = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Expect no further step."""
        signals.expect(None)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Give the signals back."""
        self._restore()

    def _vote(self, trainer: pl.Trainer) -> None:
        if trainer.strategy.reduce_boolean_decision(self._requested or signals.received(), all=False):
            trainer.should_stop = True

    def _restore(self) -> None:
        while self._previous:
            number, handler = self._previous.popitem()
            signal.signal(number, handler)
