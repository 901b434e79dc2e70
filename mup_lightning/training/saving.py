"""When checkpoints are saved, and what is restored from one."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint as LightningCheckpoint
from torch.optim.lr_scheduler import LambdaLR

from mup_lightning.callbacks.step import StepCallback, WatchedModule, due
from mup_lightning.callbacks.throughput import Throughput
from mup_lightning.config.schema import Config
from mup_lightning.errors import UserError
from mup_lightning.files import sync
from mup_lightning.training import checkpoint as checkpoints
from mup_lightning.training.checkpoint import Checkpoint
from mup_lightning.training.module import GPT2Module
from mup_lightning.training.run import plain
from mup_lightning.training.tensors import Shards, file_name, held, write

T = TypeVar("T")


class CountersIO(TorchCheckpointIO):
    """Writes and reads what Lightning itself has to remember: loops, schedule, place in the data; no tensors of ours.

    `error` says why the last write failed. Raised here, it would leave the other processes waiting.
    """

    error: OSError | RuntimeError | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Save with torch, small tensors and plain values only, so that it loads with weights_only."""
        self.error = None
        try:
            torch.save(checkpoint | {"state_dict": {}, "optimizer_states": []}, path)
            with Path(path).open("rb") as file:
                sync(file)
        except (OSError, RuntimeError) as error:
            self.error = error


class Restore(pl.Callback):
    """Continues from a checkpoint: everything that Lightning does not restore by itself."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Load the weights, before a strategy shards them."""
        Shards(self.checkpoint.path).load_weights(cast(GPT2Module, pl_module).model)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Load the optimizer's states, once the strategy has laid them out, and apply the schedule's place."""
        hybrid = cast(GPT2Module, pl_module).hybrid
        Shards(self.checkpoint.path).load_states(hybrid, trainer.global_rank)
        schedule = cast(LambdaLR, trainer.lr_scheduler_configs[0].scheduler)
        for group, factor in zip(hybrid.param_groups, schedule.lr_lambdas, strict=True):
            group["lr"] = group["initial_lr"] * factor(schedule.last_epoch)


class SaveCheckpoints(StepCallback, LightningCheckpoint):
    """Saves every `trainer.checkpoint_every` steps, after the last one, and when the run is stopped.

    A Lightning `Checkpoint` callback, so that Lightning runs it after all others, when their states are up to date.
    `throughput` is paused meanwhile; `check` raises UserError where this process may no longer write into the folder.
    `last` is the newest checkpoint that this process saved.
    """

    def __init__(
        self, folder: Path, config: Config, identity: dict[str, Any], throughput: Throughput, check: Callable[[], None]
    ) -> None:
        self.folder, self.identity, self.throughput, self.check = folder, identity, throughput, check
        self.every, self.keep = config.trainer.checkpoint_every, config.trainer.keep_checkpoints
        self.config = plain(config)
        self.last: Checkpoint | None = None

    def on_step_end(self, trainer: pl.Trainer, module: WatchedModule, step: int) -> None:
        """Save where it is due."""
        if due(step, self.every, trainer.max_steps) or trainer.should_stop:
            with self.throughput.paused():
                self.save(trainer, module, step)

    def save(self, trainer: pl.Trainer, module: WatchedModule, step: int) -> None:
        """Save now; called by all processes together, between steps. Either all succeed, or all raise.

        Raises UserError where the disk is full or cannot be written, or another process has taken the run over;
        checkpoints saved before are untouched.
        """
        source = checkpoints.unfinished(self.folder, step)
        written: dict[str, dict[str, Any]] = {}

        def make() -> None:
            if trainer.is_global_zero:
                self.check()
                if source.exists():
                    checkpoints.discard(source)
                source.mkdir(parents=True)

        def write_tensors() -> dict[str, dict[str, Any]]:
            """This process's file of tensors -> its size and hash."""
            if error := cast(CountersIO, trainer.strategy.checkpoint_io).error:
                raise error
            tensors, name = held(module.hybrid, trainer.global_rank), file_name(trainer.global_rank)
            return {name: write(source / name, tensors)} if tensors else {}

        def seal() -> None:
            if trainer.is_global_zero:
                self.last = checkpoints.seal(self.folder, step, self.config, self.identity, written)
                checkpoints.prune(self.folder, self.keep)

        self._together(trainer, step, make)
        trainer.save_checkpoint(source / checkpoints.STATE_FILE)
        for files in self._together(trainer, step, write_tensors):
            written |= files
        self._together(trainer, step, seal)

    def _together(self, trainer: pl.Trainer, step: int, task: Callable[[], T]) -> list[T]:
        """Do one stage of saving in every process, and exchange the results, or the first error."""
        result, trouble = None, None
        try:
            result = task()
        except UserError as error:
            trouble = error
        except (OSError, RuntimeError) as error:
            trouble = self._failure(step, next((line for line in str(error).splitlines() if line), repr(error)))
        outcomes: list[Any] = [(result, trouble)]
        if trainer.world_size > 1:
            outcomes = [None] * trainer.world_size
            torch.distributed.all_gather_object(outcomes, (result, trouble))
        if troubles := [trouble for _, trouble in outcomes if trouble is not None]:
            raise troubles[0]
        return [result for result, _ in outcomes]

    def _failure(self, step: int, cause: str) -> UserError:
        shutil.rmtree(checkpoints.unfinished(self.folder, step), ignore_errors=True)
        # The folder itself does not exist where it could not be made.
        above = next(folder for folder in (self.folder.absolute(), *self.folder.absolute().parents) if folder.exists())
        free = shutil.disk_usage(above).free >> 20
        saved = checkpoints.complete(self.folder)
        still = f"the checkpoint before it, {saved[-1]}, is untouched" if saved else "none was saved before it"
        return UserError(
            f"the checkpoint of step {step} could not be written to {self.folder} ({cause}; {free:,} MB free on that "
            f"disk); {still}. Make room, or mend the cause, then resume from it"
        )
