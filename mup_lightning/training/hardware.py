"""What the run computes on: device, precision, compiler, memory allocator."""

import os
import shutil

from mup_lightning.config.schema import TrainerConfig
from mup_lightning.errors import UserError


def tune_allocator() -> None:
    """Let torch's CPU allocator use huge pages: a GPT-2 vocabulary's logits are otherwise slow to map and unmap.

    To be called before torch allocates for the first time. A value that is set already stays.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def is_first_process() -> bool:
    """Whether this is the process that prints and writes (global rank 0, as the launcher's environment says)."""
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    return getattr(rank_zero_only, "rank", 0) == 0


def resolve(trainer: TrainerConfig) -> None:
    """Replace every `auto` by what this machine has, so that the saved configuration says what was run.

    Raises:
        UserError: GPUs are requested, but there are none, or fewer; or the machine lacks what precision or compile
            need.
    """
    import torch

    found = torch.cuda.device_count()
    if trainer.accelerator == "auto":
        trainer.accelerator = "gpu" if found else "cpu"
    if trainer.accelerator == "gpu" and found < trainer.devices:
        raise UserError(
            f"trainer.accelerator is gpu and trainer.devices is {trainer.devices}, but torch sees {found} GPUs here; "
            f"set trainer.devices to {found} or trainer.accelerator to cpu"
            if found
            else "trainer.accelerator is gpu, but torch sees no GPU here; set trainer.accelerator cpu"
        )
    resolve_precision(trainer)
    on_gpu = trainer.accelerator == "gpu"
    if on_gpu and trainer.precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        name = torch.cuda.get_device_name()
        raise UserError(f"trainer.precision is bf16, but {name} has no bfloat16 arithmetic; set trainer.precision fp32")
    if trainer.compile == "on":
        _check_compiler(trainer.accelerator)


def resolve_precision(trainer: TrainerConfig) -> None:
    """Replace precision and compile `auto` by what suits the accelerator, which is known by now."""
    if trainer.precision == "auto":
        trainer.precision = "bf16" if trainer.accelerator == "gpu" else "fp32"
    if trainer.compile == "auto":
        trainer.compile = "on" if trainer.accelerator == "gpu" else "off"


def _check_compiler(accelerator: str) -> None:
    """torch.compile makes C++ on a CPU and Triton kernels on a GPU, and would fail only in the first step."""
    if accelerator == "cpu":
        found, needed = any(map(shutil.which, ("g++", "clang++", "c++"))), "C++ compiler (g++ or clang++)"
    else:
        from torch.utils._triton import has_triton

        found, needed = has_triton(), "triton with a GPU that it supports"
    if not found:
        raise UserError(f"trainer.compile is on, but there is no {needed} here; set trainer.compile off")
