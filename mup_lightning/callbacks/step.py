"""Lightning's hooks count micro-batches; what callbacks do happens once per optimizer step, and so does stopping."""

import signal
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import FrameType
from typing import Any, ClassVar, Protocol

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from mup_lightning import signals
from mup_lightning.model.taps import Recorder
from mup_lightning.optim.optimizer import HybridOptimizer


class WatchedModule(Protocol):
    """What callbacks may ask of the LightningModule that trains; `training.module.GPT2Module` explains each."""

    device: torch.device
    recorder: Recorder | None
    hybrid: HybridOptimizer
    gradient_norm: torch.Tensor
    noise_sequences: int
    noise_square: torch.Tensor
    micro_losses: list[tuple[torch.Tensor, dict[str, torch.Tensor]]]
    step_loss: Callable[[], torch.Tensor]
    source_losses: Callable[[], torch.Tensor]
    validation_sums: Callable[[int], tuple[float, float, float]]


class StepCallback(pl.Callback):
    """Turns micro-batch hooks into step hooks. Steps are counted from 1: `step` is the one begun or just finished."""

    def on_step_start(self, trainer: pl.Trainer, module: WatchedModule, step: int) -> None:
        """Before the first micro-batch of an optimizer step."""

    def on_step_end(self, trainer: pl.Trainer, module: WatchedModule, step: int) -> None:
        """After the optimizer and the schedule have stepped: the only place where a state may be saved."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Call `on_step_start` where a step begins."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self.on_step_start(trainer, pl_module, trainer.global_step + 1)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Call `on_step_end` where a step ends."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.on_step_end(trainer, pl_module, trainer.global_step)


class SavedCallback(StepCallback):
    """A step callback that a checkpoint remembers; Lightning allows one of each class in a run.

    `saved`: key -> attribute, a number or a deque, that Lightning's part of a checkpoint holds.
    """

    saved: ClassVar[dict[str, str]]

    def state_dict(self) -> dict[str, Any]:
        """See `saved`."""
        values = {key: getattr(self, name) for key, name in self.saved.items()}
        return {key: list(value) if isinstance(value, deque) else value for key, value in values.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from `state_dict`; a checkpoint of an early version has none, and what is saved begins anew."""
        for key, name in self.saved.items():
            if isinstance(own := getattr(self, name), deque):
                own.extend(state_dict[key])
            else:
                setattr(self, name, state_dict[key])


def due(step: int, every: int, last: int) -> bool:
    """Whether something done every `every` steps (0: only at the end) is due after step `step` of `last`."""
    return step == last or (every > 0 and step % every == 0)


def log(trainer: pl.Trainer, values: Mapping[str, float], step: int) -> None:
    """Log the values with every logger."""
    for logger in trainer.loggers:
        logger.log_metrics(dict(values), step=step)


def tensorboard(trainer: pl.Trainer) -> Any:
    """TensorBoard's writer, for what it alone can show; None: the run has none, or another process has it."""
    return next((logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)), None)


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
        self._caught = ExitStack()
        """Gives the signals back when it is closed."""
        self._begin = 0.0
        self._warmed_up = False
        self._longest: float | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take over the signals, after Lightning; make no step at all where one has come during start-up."""
        if not signals.in_job():
            for number in self.SIGNALS:
                self._caught.callback(signal.signal, number, signal.signal(number, self._handle))
        self._vote(trainer)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._requested = True
        self._caught.close()

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
        """Give the signals back, also after an error."""
        self._caught.close()

    def _vote(self, trainer: pl.Trainer) -> None:
        if trainer.strategy.reduce_boolean_decision(self._requested or signals.received(), all=False):
            trainer.should_stop = True
