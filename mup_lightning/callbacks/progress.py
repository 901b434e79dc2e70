"""One progress bar over the whole run: loss, tokens per second, time left."""

import os
import sys
import time
from typing import Any

import lightning.pytorch as pl
from tqdm import tqdm

from mup_lightning.callbacks.losses import Validation
from mup_lightning.callbacks.step import StepCallback, WatchedModule
from mup_lightning.callbacks.throughput import Throughput


class ProgressBar(StepCallback):
    """A tqdm bar in a terminal; in a file, one line every `plain_seconds`. Only the first process shows it.

    Args:
        throughput: where the speed is read.
        validation: where the last validation loss is read.
        plain_seconds: seconds between lines where the output is not a terminal.
    """

    def __init__(self, throughput: Throughput, validation: Validation, plain_seconds: float = 15.0) -> None:
        self.throughput, self.validation, self.plain_seconds = throughput, validation, plain_seconds
        self._bar: tqdm[Any] | None = None
        self._shown = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the bar where the run stands, which is past 0 after a resume."""
        # Some terminals report no columns at all: no bar fits there.
        terminal = sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).columns > 0
        if trainer.is_global_zero:
            self._bar = tqdm(
                total=trainer.max_steps,
                initial=trainer.global_step,
                desc="training",
                dynamic_ncols=True,
                disable=not terminal,
                bar_format="{desc} {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}",
            )

    def on_step_end(self, trainer: pl.Trainer, module: WatchedModule, step: int) -> None:
        """Advance. The loss is copied from the device at most ten times a second."""
        if self._bar is None:
            return
        self._bar.update(1)
        now, terminal = time.monotonic(), not self._bar.disable
        if now - self._shown < (0.1 if terminal else self.plain_seconds) and step != trainer.max_steps:
            return
        self._shown = now
        status = f"loss {float(module.step_loss()):.3f}, {self.throughput.tokens_per_second:,.0f} tokens/s"
        if self.validation.last is not None:
            status += f", validation {self.validation.last:.3f}"
        if terminal:
            self._bar.set_postfix_str(status)
        else:
            seconds = (trainer.max_steps - step) * self.throughput.seconds / max(1, self.throughput.steps)
            left = f"{tqdm.format_interval(seconds)} left" if self.throughput.steps else "time left unknown"
            print(f"step {step}/{trainer.max_steps}: {status}, {left}", file=sys.stderr, flush=True)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Close the bar, also after an error."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
