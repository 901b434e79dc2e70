"""Linear warm-up, then a cosine to a floor, as one factor on all groups: each keeps its ratio to the base."""

import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from mup_lightning.config.schema import ScheduleConfig
from mup_lightning.errors import UserError


def warmup_cosine(config: ScheduleConfig, base_lr: float, total_steps: int) -> Callable[[int], float]:
    """The factor on every group's learning rate as a function of the optimizer step, counted from 0.

    Args:
        config: warm-up length and floor.
        base_lr: recipe.lr, the unit of the floor.
        total_steps: optimizer steps of the run; the last one, total_steps - 1, is on the floor.

    Raises:
        UserError: the warm-up is longer than the run, or the floor is above the peak.
    """
    warmup_steps = total_steps // 10 if config.warmup_steps is None else config.warmup_steps
    if warmup_steps >= total_steps:
        raise UserError(
            f"schedule.warmup_steps is {warmup_steps}, but the run has only {total_steps} steps "
            f"(trainer.max_steps); expected fewer: leave it unset for a tenth of the run"
        )
    if config.min_lr > base_lr:
        raise UserError(
            f"schedule.min_lr is {config.min_lr}, above recipe.lr {base_lr}; the floor must not exceed the peak"
        )
    floor = config.min_lr / base_lr
    decay_steps = max(1, total_steps - 1 - warmup_steps)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        progress = min(1.0, (step - warmup_steps) / decay_steps)
        return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))

    return factor


def make_schedule(optimizer: Optimizer, config: ScheduleConfig, base_lr: float, total_steps: int) -> LambdaLR:
    """`warmup_cosine` as a torch scheduler, to be stepped once per optimizer step."""
    return LambdaLR(optimizer, warmup_cosine(config, base_lr, total_steps))
