"""Train a model: from a configuration to a run folder with a result."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, Strategy
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from mup_lightning.callbacks import stop_signals
from mup_lightning.callbacks.curves import Curves
from mup_lightning.callbacks.feature_norms import FeatureNorms
from mup_lightning.callbacks.interrupt import Interrupt
from mup_lightning.callbacks.preemption import Preemption
from mup_lightning.callbacks.progress import ProgressBar
from mup_lightning.callbacks.throughput import Throughput
from mup_lightning.callbacks.validation import Validation
from mup_lightning.errors import UserError
from mup_lightning.optim.schedule import warmup_cosine
from mup_lightning.tokens.datamodule import TokenDataModule
from mup_lightning.tokens.manifest import Manifest, check_vocabulary, manifest_hash
from mup_lightning.tokens.order import accumulation_steps
from mup_lightning.training import checkpoints, hardware, versions
from mup_lightning.training.config import Config
from mup_lightning.training.module import GPT2Module
from mup_lightning.training.run_folder import RunFolder, plain
from mup_lightning.training.saving import CountersIO, RestoreStates, SaveCheckpoints
from mup_lightning.training.shards import Shards


@dataclass(frozen=True)
class Result:
    """What a run came to; also result.json.

    Attributes:
        finished: false where a signal stopped it before its last step.
        steps: optimizer steps done, over all resumes.
        first_step: how many of them were done before this process's part of the run.
        validation_loss: nats per token after the last step; None where the run was stopped before it.
        unigram_loss: nats per token of a unigram model of the same corpus: what frequencies alone are worth.
        tokens: trained on, over all resumes.
        parameters: of the model.
        seconds: wall time of this process's part of the run, start-up and validation included.
        tokens_per_second: in training steps alone.
        checkpoint: the newest one.
        tensorboard: folder of the event files; None where nothing was kept.
        versions: of what computed it, and the git revision.
    """

    finished: bool
    steps: int
    first_step: int
    validation_loss: float | None
    unigram_loss: float
    tokens: int
    parameters: int
    seconds: float
    tokens_per_second: float
    checkpoint: str | None
    tensorboard: str | None
    versions: dict[str, str | None]


def train(config: Config, *, callbacks: Sequence[pl.Callback] = (), progress: bool = True, keep: bool = True) -> Result:
    """Train as configured, or continue a run.

    Everything that can be wrong with the configuration is refused before anything is written.

    Args:
        config: is resolved in place (`auto` becomes what this machine has).
        callbacks: more of them, told of every step before the run's own progress bar and checkpoints.
        progress: show the progress bar.
        keep: make a run folder, with logs and checkpoints; False writes nothing at all.

    Returns:
        The result, which stands in the run folder too.

    Raises:
        UserError: a value, the data, the run folder or a checkpoint does not fit.
        Diverged: the loss or the gradients became NaN or infinite.
    """
    begin = time.perf_counter()
    hardware.resolve(config.trainer)
    world_size = config.trainer.devices * config.trainer.nodes
    accumulation = accumulation_steps(config.data.batch_size, config.data.micro_batch, world_size)
    lr_factor = warmup_cosine(config.schedule, config.recipe.lr, config.trainer.max_steps)
    manifest = Manifest.load(config.data.path)
    check_vocabulary(manifest, config.data.tokenizer)
    identity = plain(config.identity()) | {"corpus": manifest_hash(manifest)}

    folder = RunFolder(config)
    start = resume_from(config, folder, identity)
    again = config.run.resume == "auto"  # what an earlier life of the same job has left without a checkpoint may go
    if keep and hardware.is_first_process() and not again and not _is_own(start, folder):
        folder.refuse_used()
    first_step = start.step if start else 0
    if first_step >= config.trainer.max_steps and (before := folder.finished_result()):
        return Result(**before)
    if start and start.config["trainer"]["max_steps"] != config.trainer.max_steps:
        _say_new_length(start, config, lr_factor)

    datamodule = TokenDataModule(config.data, config.model.context, config.seed, config.trainer.max_steps)
    datamodule.setup()
    module = GPT2Module(config)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    if start:
        Shards(start.path).load_weights(module.model)
    if keep and hardware.is_first_process():
        folder.save_config(config, first_step)

    tokens_per_step = config.data.batch_size * config.model.context
    throughput, validation = Throughput(tokens_per_step), Validation(config.trainer.validate_every)
    saving = SaveCheckpoints(
        folder.checkpoints,
        config.trainer.checkpoint_every,
        config.trainer.keep_checkpoints,
        plain(asdict(config)),
        identity,
    )
    interrupt = Preemption() if stop_signals.in_job() else Interrupt()
    watching: list[pl.Callback] = [interrupt, throughput, Curves(config.trainer.log_every, throughput), validation]
    if config.trainer.feature_norms_every:
        watching.append(FeatureNorms(config.trainer.feature_norms_every, config.model.depth))
    watching += [*callbacks, *([ProgressBar(throughput, validation)] if progress else []), *([saving] if keep else [])]
    if start:
        watching.append(RestoreStates(start))
    purge_step = first_step + 1 if start else 0 if again else None
    trainer = make_trainer(config, folder, watching, accumulation, purge_step=purge_step, keep=keep)
    trainer.fit(module, datamodule, ckpt_path=str(start.state) if start else None, weights_only=True)

    steps = trainer.global_step
    finished = steps >= config.trainer.max_steps
    newest = saving.last or start
    result = Result(
        finished=finished,
        steps=steps,
        first_step=first_step,
        validation_loss=validation.history[-1][1] if finished and validation.history else None,
        unigram_loss=manifest.unigram_loss,
        tokens=steps * tokens_per_step,
        parameters=parameters,
        seconds=time.perf_counter() - begin,
        tokens_per_second=throughput.tokens_per_second,
        checkpoint=str(newest.path) if newest else None,
        tensorboard=str(folder.tensorboard) if keep else None,
        versions=versions.versions(),
    )
    if keep and hardware.is_first_process():
        folder.save_result(asdict(result))
    return result


def make_trainer(
    config: Config,
    folder: RunFolder,
    callbacks: list[pl.Callback],
    accumulation: int,
    *,
    purge_step: int | None = None,
    keep: bool = True,
) -> pl.Trainer:
    """A Lightning Trainer for a resolved configuration.

    Args:
        config: resolved.
        folder: where logs go.
        callbacks: in the order in which they shall run.
        accumulation: micro-batches per optimizer step.
        purge_step: TensorBoard forgets points from this step on, which a killed run wrote after its last checkpoint.
        keep: write TensorBoard logs and checkpoints.
    """
    _quieten()
    tensorboard = folder.tensorboard.name
    logger = TensorBoardLogger(folder.path, name="", version=tensorboard, purge_step=purge_step) if keep else False
    return pl.Trainer(
        accelerator=config.trainer.accelerator,
        strategy=_strategy(config),
        devices=config.trainer.devices,
        num_nodes=config.trainer.nodes,
        precision="32-true",  # autocast is the module's own affair
        max_steps=config.trainer.max_steps,
        max_epochs=-1,
        accumulate_grad_batches=accumulation,
        logger=logger,
        log_every_n_steps=1,  # our callbacks decide when to log
        callbacks=callbacks,
        plugins=[CountersIO(), *_cluster()],
        default_root_dir=folder.path,
        enable_checkpointing=keep,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )


def _cluster() -> list[SLURMEnvironment]:
    """In a SLURM job: where Lightning learns its ranks. Its own requeue saves inside a signal handler: it is off."""
    if not SLURMEnvironment.detect():
        return []
    # DeepSpeed knows the names of other launchers only.
    os.environ |= {"RANK": os.environ["SLURM_PROCID"], "LOCAL_RANK": os.environ["SLURM_LOCALID"]}
    return [SLURMEnvironment(auto_requeue=False)]


def _strategy(config: Config) -> Strategy | str:
    """Lightning's strategy of a name; one process needs none."""
    if config.trainer.strategy == "single":
        return "auto"
    if config.trainer.strategy.startswith("zero"):
        from mup_lightning.training.zero import ZeROStrategy

        return ZeROStrategy(int(config.trainer.strategy[-1]), config.trainer.gradient_clip)
    # The gradient buckets become the gradients themselves: no second copy of them.
    return DDPStrategy(gradient_as_bucket_view=True)


def resume_from(config: Config, folder: RunFolder, identity: dict[str, Any]) -> checkpoints.Checkpoint | None:
    """Find, check and compare the checkpoint to continue from; None for a new run.

    Raises:
        UserError: it is missing or damaged, it is of another run, or all its steps are done (which auto lets pass).
    """
    auto = config.run.resume == "auto"
    if config.run.resume is None or (auto and not checkpoints.complete(folder.checkpoints)):
        return None
    last = auto or config.run.resume == "last"
    start = checkpoints.newest(folder.checkpoints) if last else checkpoints.read(Path(config.run.resume))
    differing = checkpoints.differences(start.identity, identity)
    if differing:
        lines = "".join(f"\n  {line}" for line in differing)
        raise UserError(
            f"{start.path} cannot be continued exactly, because this run differs in:{lines}\n"
            f"Resume with the values of the checkpoint (they stand in {folder.config_file}), or start a new run "
            f"(--run.name NAME)"
        )
    if start.step >= config.trainer.max_steps and not auto:
        raise UserError(
            f"{start.path} has all {start.step} steps of the run already; raise trainer.max_steps (STEPS=N) to train on"
        )
    checkpoints.verify(start)
    return start


def _is_own(start: checkpoints.Checkpoint | None, folder: RunFolder) -> bool:
    """Whether the checkpoint is one of the run's own."""
    return start is not None and start.path.resolve().parent == folder.checkpoints.resolve()


@rank_zero_only
def _say_new_length(start: checkpoints.Checkpoint, config: Config, lr_factor: Any) -> None:
    old = start.config["trainer"]["max_steps"]
    before = warmup_cosine(config.schedule, config.recipe.lr, old)(start.step)
    print(
        f"note: the run was planned for {old} steps and now has {config.trainer.max_steps}; the schedule's factor on "
        f"the learning rate at step {start.step} goes from {before:.4f} to {lr_factor(start.step):.4f}"
    )


def _quieten() -> None:
    """Silence Lightning's advice that does not apply here; its errors stay."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for text in (
        ".*does not have many workers.*",
        ".*`isinstance.treespec, LeafSpec.` is deprecated.*",
        ".*Checkpoint directory.*exists.*",
        ".*`srun` command is available.*",
    ):
        warnings.filterwarnings("ignore", text)
