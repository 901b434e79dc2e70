"""Lightning's Trainer, as we use it, and what it computes on: device, precision, compiler."""

import logging
import os
import shutil
import warnings

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.strategies import DDPStrategy, Strategy

from mup_lightning.config.schema import TrainerConfig
from mup_lightning.errors import UserError
from mup_lightning.training.run import RunFolder
from mup_lightning.training.saving import CountersIO


def resolve(trainer: TrainerConfig) -> None:
    """Replace every `auto` by what this machine has, so that the saved configuration says what was run.

    Raises:
        UserError: GPUs are requested, but there are none, or fewer; or the machine lacks what precision or compile
            need.
    """
    found = torch.cuda.device_count()
    if trainer.accelerator == "auto":
        trainer.accelerator = "gpu" if found else "cpu"
    if trainer.accelerator == "gpu" and found < trainer.devices:
        raise UserError(
            f"trainer.accelerator is gpu and trainer.devices is {trainer.devices}, but torch sees "
            f"{f'{found} GPUs' if found else 'no GPU'} here; set trainer.devices to what is there, or "
            f"trainer.accelerator to cpu"
        )
    resolve_precision(trainer)
    on_gpu = trainer.accelerator == "gpu"
    if on_gpu and trainer.precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        name = torch.cuda.get_device_name()
        raise UserError(f"trainer.precision is bf16, but {name} has no bfloat16 arithmetic; set trainer.precision fp32")
    if trainer.compile == "on":
        _check_compiler(on_gpu)


def resolve_precision(trainer: TrainerConfig) -> None:
    """Replace precision and compile `auto` by what suits the accelerator, which is known by now."""
    if trainer.precision == "auto":
        trainer.precision = "bf16" if trainer.accelerator == "gpu" else "fp32"
    if trainer.compile == "auto":
        trainer.compile = "on" if trainer.accelerator == "gpu" else "off"


def _check_compiler(on_gpu: bool) -> None:
    """torch.compile makes C++ on a CPU and Triton kernels on a GPU, and would fail only in the first step."""
    if on_gpu:
        from torch.utils._triton import has_triton

        found, needed = has_triton(), "triton with a GPU that it supports"
    else:
        found, needed = any(map(shutil.which, ("g++", "clang++", "c++"))), "C++ compiler (g++ or clang++)"
    if not found:
        raise UserError(f"trainer.compile is on, but there is no {needed} here; set trainer.compile off")


def make_trainer(
    config: TrainerConfig,
    folder: RunFolder,
    callbacks: list[pl.Callback],
    accumulation: int,
    *,
    purge_step: int | None = None,
    keep: bool = True,
) -> pl.Trainer:
    """A Lightning Trainer.

    Args:
        config: resolved.
        folder: where logs go.
        callbacks: in the order in which they run.
        accumulation: micro-batches per optimizer step.
        purge_step: TensorBoard forgets points from this step on, which a killed run wrote after its last checkpoint.
        keep: write TensorBoard logs and checkpoints.
    """
    _silence()
    logs = folder.tensorboard.name
    return pl.Trainer(
        accelerator=config.accelerator,
        strategy=_strategy(config),
        devices=config.devices,
        num_nodes=config.nodes,
        precision="32-true",  # the module does its own autocast
        max_steps=config.max_steps,
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


def _strategy(config: TrainerConfig) -> Strategy | str:
    """Lightning's strategy; one process needs none."""
    if config.strategy == "single":
        return "auto"
    if config.strategy == "ddp":
        # The gradient buckets become the gradients themselves: no second copy of them.
        return DDPStrategy(gradient_as_bucket_view=True)
    if config.accelerator == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read when DeepSpeed is first imported
    from mup_lightning.training.deepspeed import ZeROStrategy

    return ZeROStrategy(int(config.strategy[-1]), config.gradient_clip)


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
