"""Training and validation loss over all processes, per token and per byte, as curves and on the progress bar."""

import math
import os
import sys
import time
from typing import Any

import lightning.pytorch as pl
import torch
from tqdm import tqdm

from mup_lightning.callbacks.step import StepCallback, WatchedModule, due, log
from mup_lightning.callbacks.throughput import Throughput
from mup_lightning.data.mixture import Corpora

Saved = dict[str, Any]
"""Lightning's part of a checkpoint."""


def bits_per_byte(nats: float, text: float) -> float:
    """The loss of a text of so many bytes, which is comparable across tokenizers: nats / (ln 2 x bytes).

    All tokens predicted count, and so do the bytes that they stand for. End-of-text tokens have none; what they cost
    counts, as a part of what it takes to code the documents.
    """
    return nats / (math.log(2) * text)


class Losses(StepCallback):
    """Logs the mean loss since the last point, per token and per byte, the schedule's factor and the tokens seen.

    Of a mixture it logs the loss of each source, too.

    Losses and bytes stay on the device until a point, or a checkpoint, is due: every so many steps, and when the run is
    stopped. Checkpoints hold those since the last point, so a resumed run logs the same points. `new` are the losses
    that were brought to the host in this step, nats per token, each of them once.
    """

    def __init__(self, every: int, save_every: int, tokens_per_step: int, corpora: Corpora) -> None:
        self.every, self.save_every, self.tokens_per_step = every, save_every, tokens_per_step
        self.sources = corpora.names if len(corpora.shares) > 1 else []
        self._local_sums: list[torch.Tensor] = []
        self._sums = torch.zeros(2, len(self.sources), dtype=torch.float64)
        self.new: list[float] = []
        self._known: list[float] = []
        self._bytes: list[float] = []
        self._local: list[torch.Tensor] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Have the bytes of every token at hand."""
        self._token_bytes = trainer.datamodule.token_bytes.to(pl_module.device)  # type: ignore[attr-defined]

    def on_step_end(self, trainer: pl.Trainer, module: WatchedModule, step: int) -> None:
        """Keep the step's loss, and log at a point; runs before the callbacks that read `new`."""
        text = sum(self._token_bytes[batch["tokens"][:, 1:]].sum() for _, batch in module.micro_losses)
        # In float64 the sum of a few float32 values is exact, so the order of the processes does not matter.
        self._local.append(torch.stack([module.step_loss().double(), text]))
        if self.sources:
            self._local_sums.append(module.source_losses())
        at_point, before = due(step, self.every, trainer.max_steps), len(self._known)
        self.new = []
        # A checkpoint must not be saved before its losses have been judged.
        if at_point or due(step, self.save_every, trainer.max_steps) or trainer.should_stop:
            self.new = self._exchanged(trainer)[before:]
        if at_point:
            group = trainer.optimizers[0].param_groups[0]
            values = {
                "train/loss": sum(self._known) / len(self._known),
                # The schedule has stepped already: this is the factor of the step to come, the same for all groups.
                "train/lr_factor": group["lr"] / group["initial_lr"],
                "train/tokens": float(step * self.tokens_per_step),
            }
            if len(self._bytes) == len(self._known):
                nats = math.fsum(self._known) * self.tokens_per_step
                values["train/bits_per_byte"] = bits_per_byte(nats, trainer.world_size * math.fsum(self._bytes))
            by_source = zip(self.sources, *self._sums.tolist(), strict=True)
            values |= {f"train/loss/{name}": loss / count for name, loss, count in by_source if count}
            log(trainer, values, step)
            self._known, self._bytes = [], []
            self._sums.zero_()

    def _exchanged(self, trainer: pl.Trainer) -> list[float]:
        """Every step's loss since the last point, the mean over all processes, which call this together."""
        if self._local:
            losses, text = trainer.strategy.reduce(torch.stack(self._local, 1), reduce_op="mean").tolist()
            self._known += losses
            self._bytes += text
            self._local = []
        if self._local_sums:
            self._sums += trainer.strategy.reduce(torch.stack(self._local_sums).sum(0), reduce_op="sum").cpu()
            self._local_sums = []
        return self._known

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Saved) -> None:
        """Add the losses since the last point; every process is here, and one of them writes."""
        checkpoint["step_losses"], checkpoint["step_bytes"] = list(self._exchanged(trainer)), list(self._bytes)
        if self.sources:
            checkpoint["source_losses"] = self._sums.tolist()

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Saved) -> None:
        """Take them up again; checkpoints of early versions have none, or no bytes."""
        self._known, self._bytes = list(checkpoint.get("step_losses", [])), list(checkpoint.get("step_bytes", []))
        if self.sources:
            self._sums = torch.tensor(checkpoint["source_losses"], dtype=torch.float64)


class Validation(StepCallback):
    """Measures the validation loss every `every` steps and after the last, by the module's `validation_sums`.

    Not Lightning's validation loop, whose place in the epoch would have to be saved with every checkpoint. A checkpoint
    holds the loss that was measured in its step: a run that is killed after its last one still ends with a result.
    Throughput is paused meanwhile. `last` is the newest loss that this process measured, and `bits_per_byte` the same
    by the bytes of the text; None before the first. Of a mixture each source is measured, and its loss is their mean by
    their shares.
    """

    def __init__(self, every: int, throughput: Throughput, corpora: Corpora) -> None:
        self.every, self.throughput, self.corpora = every, throughput, corpora
        self.last: float | None = None
        self.bits_per_byte: float | None = None
        self._measured_in = 0

    def on_step_end(self, trainer: pl.Trainer, module: WatchedModule, step: int) -> None:
        """Measure where it is due."""
        if due(step, self.every, trainer.max_steps):
            with self.throughput.paused():
                sums = [module.validation_sums(source) for source in range(len(self.corpora.shares))]
            losses, mean = [nats / tokens for nats, tokens, _ in sums], self.corpora.mean
            self.last, self._measured_in = mean(losses), step
            self.bits_per_byte = bits_per_byte(self.last, mean([text / tokens for _, tokens, text in sums]))
            values = {"validation/loss": self.last, "validation/bits_per_byte": self.bits_per_byte}
            if len(losses) > 1:
                values |= {f"validation/loss/{name}": own for name, own in zip(self.corpora.names, losses, strict=True)}
            log(trainer, values, step)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Saved) -> None:
        """Add what was measured in this step."""
        measured = (self.last, self.bits_per_byte) if self._measured_in == trainer.global_step else (None, None)
        checkpoint["validation_loss"], checkpoint["validation_bits_per_byte"] = measured

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Saved) -> None:
        """Take it up again; checkpoints of early versions have none."""
        self.last = checkpoint.get("validation_loss")
        self.bits_per_byte = checkpoint.get("validation_bits_per_byte")


class ProgressBar(StepCallback):
    """A tqdm bar in a terminal; in a file, one line every 15 seconds. Only the first process shows it."""

    def __init__(self, throughput: Throughput, validation: Validation) -> None:
        self.throughput, self.validation = throughput, validation
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
        now, terminal, speed = time.monotonic(), not self._bar.disable, self.throughput
        if now - self._shown < (0.1 if terminal else 15.0) and step != trainer.max_steps:
            return
        self._shown = now
        status, left = f"loss {float(module.step_loss()):.3f}", "time left unknown"
        if speed.steps:
            status += f", {speed.tokens_per_second:,.0f} tokens/s"
            left = f"{tqdm.format_interval((trainer.max_steps - step) * speed.seconds / speed.steps)} left"
        if self.validation.last is not None:
            status += f", validation {self.validation.last:.3f}"
        if terminal:
            self._bar.set_postfix_str(status)
        else:
            print(f"step {step}/{trainer.max_steps}: {status}, {left}", file=sys.stderr, flush=True)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Close the bar, also after an error."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
