"""Lightning's Trainer, as we use it."""

import logging
import os
import warnings

import lightning.pytorch as pl
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.strategies import DDPStrategy, Strategy

from mup_lightning.config.schema import Config
from mup_lightning.training.checkpoint import RunFolder
from mup_lightning.training.saving import CountersIO


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
        callbacks: in the order in which they run.
        accumulation: micro-batches per optimizer step.
        purge_step: TensorBoard forgets points from this step on, which a killed run wrote after its last checkpoint.
        keep: write TensorBoard logs and checkpoints.
    """
    _silence()
    trainer, logs = config.trainer, folder.tensorboard.name
    return pl.Trainer(
        accelerator=trainer.accelerator,
        strategy=_strategy(config),
        devices=trainer.devices,
        num_nodes=trainer.nodes,
        precision="32-true",  # the module does its own autocast
        max_steps=trainer.max_steps,
        max_epochs=-1,
        accumulate_grad_batches=accumulation,
        logger=TensorBoardLogger(folder.path, name="", version=logs, purge_step=purge_step) if keep else False,
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
    """In a SLURM job: how Lightning learns its ranks. Its own requeue saves inside a signal handler, so it is off."""
    if not SLURMEnvironment.detect():
        return []
    # DeepSpeed only knows the variables of other launchers.
    os.environ |= {"RANK": os.environ["SLURM_PROCID"], "LOCAL_RANK": os.environ["SLURM_LOCALID"]}
    return [SLURMEnvironment(auto_requeue=False)]


def _strategy(config: Config) -> Strategy | str:
    """Lightning's strategy for trainer.strategy; one process needs none."""
    if config.trainer.strategy == "single":
        return "auto"
    if config.trainer.strategy.startswith("zero"):
        if config.trainer.accelerator == "cpu":
            os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read when DeepSpeed is first imported
        from mup_lightning.training.deepspeed import ZeROStrategy

        return ZeROStrategy(int(config.trainer.strategy[-1]), config.trainer.gradient_clip)
    # The gradient buckets become the gradients themselves: no second copy of them.
    return DDPStrategy(gradient_as_bucket_view=True)


def _silence() -> None:
    """Silence Lightning's advice that does not apply here; its errors stay."""
    for name in ("lightning.pytorch", "lightning.fabric", "DeepSpeed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for text in (
        ".*does not have many workers.*",
        ".*`isinstance.treespec, LeafSpec.` is deprecated.*",
        ".*Checkpoint directory.*exists.*",
        ".*DeepSpeed handles gradient clipping internally.*",
        ".*torch.distributed.* is deprecated.*",  # inside DeepSpeed 0.19.8, with torch 2.13
        ".*`srun` command is available.*",
    ):
        warnings.filterwarnings("ignore", text)
