"""When checkpoints are saved, and how Lightning writes and reads their state."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint as LightningCheckpoint

from mup_lightning.callbacks.step import StepCallback, WatchedModule, due
from mup_lightning.errors import UserError
from mup_lightning.training import checkpoints


class StreamedCheckpointIO(TorchCheckpointIO):
    """Writes straight to the file, where Lightning's own first builds the whole checkpoint in memory once more.

    It need not be atomic: `checkpoints` renames a finished folder.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Save with torch, tensors and plain values only, so that it loads with weights_only."""
        with Path(path).open("wb") as file:
            torch.save(checkpoint, file)


class SaveCheckpoints(StepCallback, LightningCheckpoint):
    """Saves every `every` steps, after the last one, and when the run is told to stop.

    A Lightning `Checkpoint` callback, so that Lightning runs it after all others: what they keep is then up to date.

    Args:
        folder: the run's folder of checkpoints.
        every: steps between checkpoints; 0: only at the end.
        keep: complete checkpoints that stay.
        config: the run's whole configuration, as plain nested values.
        identity: see `checkpoints.Checkpoint`.

    Attributes:
        last: the newest checkpoint of this process's life.
    """

    def __init__(self, folder: Path, every: int, keep: int, config: dict[str, Any], identity: dict[str, Any]) -> None:
        self.folder, self.every, self.keep = folder, every, keep
        self.config, self.identity = config, identity
        self.last: checkpoints.Checkpoint | None = None

    def on_step_end(self, trainer: pl.Trainer, module: WatchedModule, step: int) -> None:
        """See `StepCallback`."""
        if due(step, self.every, trainer.max_steps) or trainer.should_stop:
            self.save(trainer, step)

    def save(self, trainer: pl.Trainer, step: int) -> None:
        """Save now; called by all processes together, between steps.

        Raises:
            UserError: the disk is full or cannot be written; checkpoints saved before are untouched.
        """
        source = checkpoints.unfinished(self.folder, step)
        try:
            if trainer.is_global_zero:
                shutil.rmtree(source, ignore_errors=True)
                source.mkdir(parents=True)
            trainer.strategy.barrier("checkpoint folder made")
            trainer.save_checkpoint(source / checkpoints.STATE_FILE)
            if trainer.is_global_zero:
                self.last = checkpoints.seal(self.folder, step, self.config, self.identity, self.keep)
        except (OSError, RuntimeError) as error:
            raise UserError(self._could_not_save(step, source, error)) from error
        trainer.strategy.barrier("checkpoint sealed")

    def _could_not_save(self, step: int, source: Path, error: Exception) -> str:
        shutil.rmtree(source, ignore_errors=True)
        free = shutil.disk_usage(self.folder).free >> 20
        saved = checkpoints.complete(self.folder)
        still = f"the checkpoint before it, {saved[-1]}, is untouched" if saved else "none was saved before it"
        cause = next((line for line in str(error).splitlines() if line), repr(error))
        return (
            f"the checkpoint of step {step} could not be written to {self.folder} ({cause}; {free:,} MB free on that "
            f"disk); {still}. Make room, then resume from it"
        )
