"""When checkpoints are saved, and how a run continues from one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint as LightningCheckpoint
from torch.optim.lr_scheduler import LambdaLR

from mup_lightning.callbacks.step import StepCallback, WatchedModule, due
from mup_lightning.callbacks.throughput import Throughput
from mup_lightning.errors import UserError
from mup_lightning.training import checkpoint as checkpoints
from mup_lightning.training import tensors as shards
from mup_lightning.training.module import GPT2Module
from mup_lightning.training.tensor_files import write

T = TypeVar("T")


class CountersIO(TorchCheckpointIO):
    """Writes and reads what Lightning itself has to remember: loops, schedule, place in the data; no tensors of ours.

    Attributes:
        error: why the last writing failed. Raised here, it would leave the other processes waiting.
    """

    error: OSError | RuntimeError | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Save with torch, small tensors and plain values only, so that it loads with weights_only."""
        self.error = None
        try:
            torch.save(checkpoint | {"state_dict": {}, "optimizer_states": []}, path)
        except (OSError, RuntimeError) as error:
            self.error = error


class RestoreStates(pl.Callback):
    """Continues from a checkpoint's optimizer states, once the strategy has laid out the optimizer.

    Args:
        checkpoint: to continue from.
    """

    def __init__(self, checkpoint: checkpoints.Checkpoint) -> None:
        self.checkpoint = checkpoint

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """See Lightning; the schedule has its place again by now, but not yet its effect."""
        assert isinstance(pl_module, GPT2Module)
        shards.Shards(self.checkpoint.path).load_states(pl_module.hybrid, trainer.global_rank)
        (schedule,) = (config.scheduler for config in trainer.lr_scheduler_configs)
        assert isinstance(schedule, LambdaLR)
        for group, factor in zip(pl_module.hybrid.param_groups, schedule.lr_lambdas, strict=True):
            group["lr"] = group["initial_lr"] * factor(schedule.last_epoch)


class SaveCheckpoints(StepCallback, LightningCheckpoint):
    """Saves every `every` steps, after the last one, and when the run is told to stop.

    A Lightning `Checkpoint` callback, so that Lightning runs it after all others: what they keep is then up to date.

    Args:
        folder: the run's folder of checkpoints.
        every: steps between checkpoints; 0: only at the end.
        keep: complete checkpoints that stay.
        config: the run's whole configuration, as plain nested values.
        identity: see `checkpoints.Checkpoint`.
        throughput: is told to leave out the time.

    Attributes:
        last: the newest checkpoint of this process's life.
    """

    def __init__(
        self,
        folder: Path,
        every: int,
        keep: int,
        config: dict[str, Any],
        identity: dict[str, Any],
        throughput: Throughput,
    ) -> None:
        self.folder, self.every, self.keep = folder, every, keep
        self.config, self.identity, self.throughput = config, identity, throughput
        self.last: checkpoints.Checkpoint | None = None

    def on_step_end(self, trainer: pl.Trainer, module: WatchedModule, step: int) -> None:
        """See `StepCallback`."""
        if due(step, self.every, trainer.max_steps) or trainer.should_stop:
            with self.throughput.paused():
                self.save(trainer, step)

    def save(self, trainer: pl.Trainer, step: int) -> None:
        """Save now; called by all processes together, between steps. Either all succeed, or all raise.

        Raises:
            UserError: the disk is full or cannot be written; checkpoints saved before are untouched.
        """
        source = checkpoints.unfinished(self.folder, step)
        self._together(trainer, step, lambda: self._make(source) if trainer.is_global_zero else None)
        trainer.save_checkpoint(source / checkpoints.STATE_FILE)
        written: dict[str, dict[str, Any]] = {}
        for files in self._together(trainer, step, lambda: self._write(trainer, source)):
            written |= files

        def seal() -> None:
            if trainer.is_global_zero:
                self.last = checkpoints.seal(self.folder, step, self.config, self.identity, self.keep, written)

        self._together(trainer, step, seal)

    @staticmethod
    def _make(source: Path) -> None:
        shutil.rmtree(source, ignore_errors=True)
        source.mkdir(parents=True)

    @staticmethod
    def _write(trainer: pl.Trainer, source: Path) -> dict[str, dict[str, Any]]:
        """Write this process's tensors: file name -> its size and hash."""
        io, module = trainer.strategy.checkpoint_io, trainer.lightning_module
        assert isinstance(io, CountersIO)
        assert isinstance(module, GPT2Module)
        if io.error is not None:
            raise io.error
        tensors = shards.held(module.hybrid, trainer.global_rank)
        name = shards.file_name(trainer.global_rank)
        return {name: write(source / name, tensors)} if tensors else {}

    def _together(self, trainer: pl.Trainer, step: int, part: Callable[[], T]) -> list[T]:
        """Do a part of the saving in every process, and learn what came of it in the others."""
        result, trouble = None, None
        try:
            result = part()
        except (OSError, RuntimeError) as error:
            trouble = next((line for line in str(error).splitlines() if line), repr(error))
        outcomes: list[Any] = [(result, trouble)]
        if trainer.world_size > 1:
            outcomes = [None] * trainer.world_size
            torch.distributed.all_gather_object(outcomes, (result, trouble))
        troubles = [trouble for _, trouble in outcomes if trouble is not None]
        if troubles:
            raise UserError(self._could_not_save(step, troubles[0]))
        return [result for result, _ in outcomes]

    def _could_not_save(self, step: int, cause: str) -> str:
        shutil.rmtree(checkpoints.unfinished(self.folder, step), ignore_errors=True)
        # The folder itself is not there where it could not be made.
        there = next(folder for folder in (self.folder.absolute(), *self.folder.absolute().parents) if folder.exists())
        free = shutil.disk_usage(there).free >> 20
        saved = checkpoints.complete(self.folder)
        still = f"the checkpoint before it, {saved[-1]}, is untouched" if saved else "none was saved before it"
        return (
            f"the checkpoint of step {step} could not be written to {self.folder} ({cause}; {free:,} MB free on that "
            f"disk); {still}. Make room, then resume from it"
        )
