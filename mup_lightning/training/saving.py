"""When checkpoints are saved, and how a run continues from one."""

import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint as LightningCheckpoint
from torch.optim.lr_scheduler import LambdaLR

from mup_lightning.callbacks.step import StepCallback, WatchedModule, due
from mup_lightning.callbacks.throughput import Throughput
from mup_lightning.config.schema import Config
from mup_lightning.data.shards import Manifest, manifest_hash
from mup_lightning.errors import UserError
from mup_lightning.optim.registry import used_sections
from mup_lightning.optim.schedule import warmup_cosine
from mup_lightning.training import checkpoint as checkpoints
from mup_lightning.training.checkpoint import Checkpoint, RunFolder, plain
from mup_lightning.training.hardware import is_first_process
from mup_lightning.training.module import GPT2Module
from mup_lightning.training.tensors import Shards, file_name, held, write

T = TypeVar("T")


def identity_of(config: Config, manifest: Manifest) -> dict[str, Any]:
    """What must be equal for a run to be continued exactly, as plain nested values.

    Args:
        config: of the run, its section `rules` resolved; those of rules that the run does not use are left out.
        manifest: of the corpus.
    """
    identity = plain(config.identity()) | {"corpus": manifest_hash(manifest)}
    return identity | {"rules": {name: identity["rules"][name] for name in used_sections(config.recipe.optimizer)}}


def resume_from(config: Config, folder: RunFolder, identity: dict[str, Any], *, keep: bool = True) -> Checkpoint | None:
    """Find, check and compare the checkpoint to continue from; None for a new run.

    Args:
        config: of the run.
        folder: of the run.
        identity: see `identity_of`.
        keep: whether the run writes into its folder.

    Raises:
        UserError: it is missing or damaged, it belongs to another run or was set aside in this one, or all its steps
            are done (which `auto` allows); or the run is a new one, but its folder holds another.
    """
    resume, auto = config.run.resume, config.run.resume == "auto"
    start = None
    if resume == "last" or (auto and checkpoints.complete(folder.checkpoints)):
        start = checkpoints.newest(folder.checkpoints)
    elif resume is not None and not auto:
        start = checkpoints.read(Path(resume))
    # Under auto, what an earlier start of the same job has left without a checkpoint is replaced.
    if keep and is_first_process() and not auto and not (start and folder.owns(start)):
        folder.refuse_used()
    if start:
        _check(start, config, folder, identity)
    return start


def _check(start: Checkpoint, config: Config, folder: RunFolder, identity: dict[str, Any]) -> None:
    if folder.owns(start) and start.path.name != checkpoints.folder_name(start.step):
        raise UserError(
            f"{start.path} was set aside when its run went back to an older checkpoint, and that run has other steps "
            f"now; continue it as another one (--run.name NAME)"
        )
    used = {name: options for name, options in start.identity["rules"].items() if name in identity["rules"]}
    differing = checkpoints.differences(start.identity | {"rules": used}, identity)
    if differing:
        lines = "".join(f"\n  {line}" for line in differing)
        raise UserError(
            f"{start.path} cannot be continued exactly, because this run differs in:{lines}\n"
            f"Resume with the values of the checkpoint (see config.yaml in its run's folder), or start a new run "
            f"(--run.name NAME)"
        )
    if start.step >= config.trainer.max_steps and config.run.resume != "auto":
        raise UserError(
            f"{start.path} already has all {start.step} steps of the run; raise --trainer.max_steps to train on"
        )
    if is_first_process():
        checkpoints.verify(start)
        _note_new_length(start, config)


def _note_new_length(start: Checkpoint, config: Config) -> None:
    """Print what another length of the run does to the schedule."""
    lengths = start.config["trainer"]["max_steps"], config.trainer.max_steps
    if lengths[0] != lengths[1]:
        before, now = (warmup_cosine(config.schedule, config.recipe.lr, length)(start.step) for length in lengths)
        print(
            f"note: the run was planned for {lengths[0]} steps and now has {lengths[1]}; the schedule's factor on the "
            f"learning rate at step {start.step} goes from {before:.4f} to {now:.4f}"
        )


class CountersIO(TorchCheckpointIO):
    """Writes and reads what Lightning itself has to remember: loops, schedule, place in the data; no tensors of ours.

    Attributes:
        error: why the last write failed. Raised here, it would leave the other processes waiting.
    """

    error: OSError | RuntimeError | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Save with torch, small tensors and plain values only, so that it loads with weights_only."""
        self.error = None
        try:
            torch.save(checkpoint | {"state_dict": {}, "optimizer_states": []}, path)
            with Path(path).open("rb") as file:
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:
            self.error = error


class Restore(pl.Callback):
    """Continues from a checkpoint: everything that Lightning does not restore by itself.

    Args:
        checkpoint: to continue from.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Load the weights, before a strategy shards them."""
        assert isinstance(pl_module, GPT2Module)
        Shards(self.checkpoint.path).load_weights(pl_module.model)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Load the optimizer's states, once the strategy has laid them out, and apply the schedule's place."""
        assert isinstance(pl_module, GPT2Module)
        Shards(self.checkpoint.path).load_states(pl_module.hybrid, trainer.global_rank)
        (schedule,) = (config.scheduler for config in trainer.lr_scheduler_configs)
        assert isinstance(schedule, LambdaLR)
        for group, factor in zip(pl_module.hybrid.param_groups, schedule.lr_lambdas, strict=True):
            group["lr"] = group["initial_lr"] * factor(schedule.last_epoch)


class SaveCheckpoints(StepCallback, LightningCheckpoint):
    """Saves every `trainer.checkpoint_every` steps, after the last one, and when the run is stopped.

    A Lightning `Checkpoint` callback, so that Lightning runs it after all others, when their states are up to date.

    Args:
        folder: of the run.
        config: of the run, resolved.
        identity: see `Checkpoint`.
        throughput: paused meanwhile.

    Attributes:
        last: the newest checkpoint that this process saved.
    """

    def __init__(self, folder: RunFolder, config: Config, identity: dict[str, Any], throughput: Throughput) -> None:
        self.folder, self.config, self.identity, self.throughput = folder.checkpoints, config, identity, throughput
        self.last: Checkpoint | None = None

    def on_step_end(self, trainer: pl.Trainer, module: WatchedModule, step: int) -> None:
        """Save where it is due."""
        if due(step, self.config.trainer.checkpoint_every, trainer.max_steps) or trainer.should_stop:
            with self.throughput.paused():
                self.save(trainer, step)

    def save(self, trainer: pl.Trainer, step: int) -> None:
        """Save now; called by all processes together, between steps. Either all succeed, or all raise.

        Raises:
            UserError: the disk is full or cannot be written; checkpoints saved before are untouched.
        """
        source = checkpoints.unfinished(self.folder, step)

        def make() -> None:
            if trainer.is_global_zero:
                shutil.rmtree(source, ignore_errors=True)
                source.mkdir(parents=True)

        def seal() -> None:
            if trainer.is_global_zero:
                config, keep = plain(asdict(self.config)), self.config.trainer.keep_checkpoints
                self.last = checkpoints.seal(self.folder, step, config, self.identity, keep, written)

        self._together(trainer, step, make)
        trainer.save_checkpoint(source / checkpoints.STATE_FILE)
        written: dict[str, dict[str, Any]] = {}
        for files in self._together(trainer, step, lambda: _write_tensors(trainer, source)):
            written |= files
        self._together(trainer, step, seal)

    def _together(self, trainer: pl.Trainer, step: int, task: Callable[[], T]) -> list[T]:
        """Do one stage of saving in every process, and exchange the results, or the first error."""
        result, trouble = None, None
        try:
            result = task()
        except (OSError, RuntimeError) as error:
            trouble = next((line for line in str(error).splitlines() if line), repr(error))
        outcomes: list[Any] = [(result, trouble)]
        if trainer.world_size > 1:
            outcomes = [None] * trainer.world_size
            torch.distributed.all_gather_object(outcomes, (result, trouble))
        troubles = [trouble for _, trouble in outcomes if trouble is not None]
        if troubles:
            raise UserError(self._failure(step, troubles[0]))
        return [result for result, _ in outcomes]

    def _failure(self, step: int, cause: str) -> str:
        shutil.rmtree(checkpoints.unfinished(self.folder, step), ignore_errors=True)
        # The folder itself does not exist where it could not be made.
        above = next(folder for folder in (self.folder.absolute(), *self.folder.absolute().parents) if folder.exists())
        free = shutil.disk_usage(above).free >> 20
        saved = checkpoints.complete(self.folder)
        still = f"the checkpoint before it, {saved[-1]}, is untouched" if saved else "none was saved before it"
        return (
            f"the checkpoint of step {step} could not be written to {self.folder} ({cause}; {free:,} MB free on that "
            f"disk); {still}. Make room, then resume from it"
        )


def _write_tensors(trainer: pl.Trainer, folder: Path) -> dict[str, dict[str, Any]]:
    """Write this process's tensors: file name -> its size and hash."""
    io, module = trainer.strategy.checkpoint_io, trainer.lightning_module
    assert isinstance(io, CountersIO)
    assert isinstance(module, GPT2Module)
    if io.error is not None:
        raise io.error
    tensors, name = held(module.hybrid, trainer.global_rank), file_name(trainer.global_rank)
    return {name: write(folder / name, tensors)} if tensors else {}
