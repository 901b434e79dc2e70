"""What the run computes on: device, precision, memory allocator."""

from __future__ import annotations

import os

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


def resolve(config: TrainerConfig) -> None:
    """Replace every `auto` by what this machine has, so that the saved configuration says what was run.

    Raises:
        UserError: GPUs are asked for, but there are none, or fewer.
    """
    import torch

    found = torch.cuda.device_count()
    if config.accelerator == "auto":
        config.accelerator = "gpu" if found else "cpu"
    if config.accelerator == "gpu" and found < config.devices:
        raise UserError(
            f"trainer.accelerator is gpu and trainer.devices is {config.devices}, but torch sees {found} GPUs here; "
            f"set trainer.devices to {found} or trainer.accelerator to cpu"
            if found
            else "trainer.accelerator is gpu, but torch sees no GPU here; set trainer.accelerator cpu"
        )
    resolve_precision(config)


def resolve_precision(config: TrainerConfig) -> None:
    """Replace precision `auto` by what the accelerator, known by now, is best at."""
    if config.precision == "auto":
        config.precision = "bf16" if config.accelerator == "gpu" else "fp32"
    if config.compile == "auto":
        config.compile = "on" if config.accelerator == "gpu" else "off"
