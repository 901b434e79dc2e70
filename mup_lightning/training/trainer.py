"""Lightning's Trainer, as we use it, and what it computes on: device, precision, compiler."""

import logging
import os
import shutil
import warnings
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.environments import ClusterEnvironment, LightningEnvironment, TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy, Strategy
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from mup_lightning.config.schema import Config, TrainerConfig, leaves
from mup_lightning.errors import UserError
from mup_lightning.plan.plan import plan
from mup_lightning.training import launch, loggers
from mup_lightning.training.fsdp import FSDPStrategy
from mup_lightning.training.launch import Process
from mup_lightning.training.run import RunFolder, plain
from mup_lightning.training.saving import CountersIO


def enter(trainer: TrainerConfig) -> Process:
    """Find out which process of the run this one is, and tell Lightning, which has guessed while it was imported.

    Raises UserError where it is alone, and should be one of several.
    """
    process = launch.this_process(trainer)
    if process is None:
        raise UserError(
            f"trainer.devices is {trainer.devices}, and train() runs in one process; start it by mup-lightning train, "
            f"torchrun or srun"
        )
    rank_zero_only.rank = process.rank  # type: ignore[attr-defined]
    return process


def resolve(trainer: TrainerConfig) -> None:
    """Replace every `auto` by what this machine has, so that the saved configuration says what was run.

    Raises UserError where the machine has fewer GPUs than are asked for, or lacks what precision or compile need.
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
    if trainer.compile == "on":  # torch.compile would fail only in the first step
        if on_gpu:
            from torch.utils._triton import has_triton

            found, needed = has_triton(), "triton with a GPU that it supports"
        else:
            found, needed = any(map(shutil.which, ("g++", "clang++", "c++"))), "C++ compiler (g++ or clang++)"
        if not found:
            raise UserError(f"trainer.compile is on, but there is no {needed} here; set trainer.compile off")
        if trainer.zero_stage == 3 and torch.__version__ < "2.13":  # measured: docs/results/gpu.md
            raise UserError(
                f"trainer.strategy is zero3 and trainer.compile on, which under torch {torch.__version__} loses two "
                f"thirds of the gradient; set trainer.compile off, or install torch 2.13"
            )


def resolve_precision(trainer: TrainerConfig) -> None:
    """Replace precision and compile `auto` by what suits the accelerator, which is known by now."""
    on_gpu = trainer.accelerator == "gpu"
    if trainer.precision == "auto":
        trainer.precision = "bf16" if on_gpu else "fp32"
    if trainer.compile == "auto":
        trainer.compile = "on" if on_gpu else "off"


def resolve_micro_batch(config: Config) -> None:
    """Replace data.micro_batch auto by a number, if the processes divide the batch; see `plan.memory.micro_batch`."""
    trainer, data = config.trainer, config.data
    if data.micro_batch == "auto":
        gpus = range(torch.cuda.device_count() if trainer.accelerator == "gpu" else 0)
        memory = min((torch.cuda.get_device_properties(gpu).total_memory for gpu in gpus), default=0)
        processes = trainer.devices * trainer.nodes
        found = plan(config, (processes,), "cuda" if gpus else "cpu", memory=memory).micro_batch[processes]
        data.micro_batch = found or 1


def make_trainer(
    config: Config, folder: RunFolder, callbacks: list[pl.Callback], accumulation: int, start: int | None, *, keep: bool
) -> pl.Trainer:
    """A Lightning Trainer for a resolved configuration, with callbacks in the order in which they run.

    `accumulation` are the micro-batches of a step, `start` the step that a resumed run continues from; None: a new run.
    `keep`: write logs and checkpoints. Raises UserError where a logger of run.loggers cannot be opened.
    """
    _silence()
    trainer = config.trainer
    process = enter(trainer)
    on_gpu = trainer.accelerator == "gpu"
    if on_gpu:
        # A help against code that reads memory before it is written, which takes a pass of its own.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        if trainer.compile == "on":
            torch._inductor.config.deterministic = trainer.deterministic  # or may kernels be chosen by their time?
    together = [Together(process, config)] if process.world_size > 1 else []
    environment: ClusterEnvironment = LightningEnvironment()
    if trainer.strategy != "single":
        launch.announce(process)
        environment = TorchElasticEnvironment()
    return pl.Trainer(
        accelerator=trainer.accelerator,
        strategy=_strategy(trainer),
        devices=trainer.devices,
        num_nodes=trainer.nodes,
        deterministic=trainer.deterministic if on_gpu else None,  # CPUs always are
        precision="32-true",  # the module does its own autocast
        max_steps=trainer.max_steps,
        max_epochs=-1,
        accumulate_grad_batches=accumulation,
        logger=loggers.make(config, folder, start) if keep else False,
        log_every_n_steps=1,  # our callbacks decide when to log
        callbacks=[*together, *callbacks],
        plugins=[CountersIO(), environment],
        default_root_dir=folder.path,
        enable_checkpointing=keep,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )


class Together(pl.Callback):
    """The processes of a run, of which this is one, begin with the same configuration, and end together."""

    def __init__(self, process: Process, config: Config) -> None:
        self.process, self.config = process, config

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Raise UserError, in every process, for values that differ: of files, or of what `auto` has found."""
        every: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(every, leaves(plain(self.config)))
        for number, other in enumerate(every, 1):
            for key in sorted(every[0].keys() | other.keys()):
                if (own := other.get(key)) != (first := every[0].get(key)):
                    advice = "set it to one value for all"
                    raise UserError(f"{key} is {first} in process 1 and {own} in process {number}; {advice}")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """End at once after an unexpected error, so that whoever started the processes can end the others.

        Lightning would first tear down what may wait for the others, while they wait for this one.
        """
        by_hand = isinstance(exception, KeyboardInterrupt) and launch.REPORTS not in os.environ
        if isinstance(exception, torch.distributed.DistNetworkError) and not torch.distributed.is_initialized():
            address, port = launch.meeting_point(self.process)
            cause = str(exception).partition("\n")[0]
            exception = UserError(
                f"the processes cannot meet at {address}:{port} ({cause}); set MASTER_PORT to a port that is free there"
            )
        elif isinstance(exception, UserError) or by_hand:
            return
        for logger in trainer.loggers:
            logger.finalize("failed")
        launch.end(self.process, exception)


def _strategy(config: TrainerConfig) -> Strategy | str:
    """Lightning's strategy; one process needs none."""
    if config.strategy == "single":
        return "auto"
    if config.strategy == "ddp":
        # The gradient buckets become the gradients themselves: no second copy of them.
        return DDPStrategy(gradient_as_bucket_view=True)
    if config.strategy == "fsdp":
        return FSDPStrategy()
    if config.accelerator == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read when DeepSpeed is first imported
    from mup_lightning.training.deepspeed import ZeROStrategy

    return ZeROStrategy(config.zero_stage, config.gradient_clip)


def _silence() -> None:
    """Silence Lightning's advice that does not apply here; its errors stay."""
    for name in ("lightning.pytorch", "lightning.fabric", "DeepSpeed", "mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for text in (
        ".*does not have many workers.*",
        ".*`isinstance.treespec, LeafSpec.` is deprecated.*",
        ".*Checkpoint directory.*exists.*",
        ".*Experiment logs directory.*exists.*",
        ".*DeepSpeed handles gradient clipping internally.*",
        ".*torch.distributed.* is deprecated.*",  # inside DeepSpeed 0.19.8, with torch 2.13
        ".*`srun` command is available.*",
    ):
        warnings.filterwarnings("ignore", text)
