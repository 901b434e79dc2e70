"""The learning rate over time, as one factor on all groups, each of which keeps its ratio to the base."""

import math
from collections.abc import Callable

from mup_lightning.config.schema import Config
from mup_lightning.errors import UserError

Factor = Callable[[int], float]
"""Of a step, counted from 0: what every group's peak learning rate is multiplied by."""


def lr_factor(config: Config) -> Factor:
    """A run's schedule: linear warm-up, the peak, and a decay of which the run's last step is the end.

    wsd, and constant as its trunk, give the same factors up to the decay: a run of any length is one trunk and a branch
    (Hu et al. 2024, arXiv 2404.06395). A decay of a fifth of the run: arXiv 2405.18392.

    Raises:
        UserError: warm-up and decay leave no step at the peak, or the floor is above the peak.
    """
    schedule, total, lr = config.schedule, config.trainer.max_steps, config.recipe.lr
    warmup = warmup_steps(config)
    decay = decay_steps(schedule.decay, total) if schedule.kind == "wsd" else 0
    if warmup + decay >= total:
        given = [key for key in ("warmup_steps", "warmup_tokens") if getattr(schedule, key) is not None]
        key = (given or ["warmup_share"])[0]
        long = "" if key == "warmup_steps" else f", which is {warmup} steps"
        less = f", the last {decay} of which are schedule.decay's" if decay else ""
        raise UserError(
            f"schedule.{key} is {getattr(schedule, key)}{long}, but the run has only {total} steps "
            f"(trainer.max_steps){less}; expected fewer: leave it unset for a tenth of the run"
        )
    floor = schedule.min_lr / lr if schedule.floor is None else schedule.floor
    if schedule.kind == "constant":
        floor = 1.0
    elif floor > 1.0:
        below = "the floor must not exceed the peak"
        raise UserError(f"schedule.min_lr is {schedule.min_lr}, above recipe.lr {lr}; {below}")
    peak = total - 1 - decay if decay else warmup  # the last step at the peak
    length = max(1, total - 1 - peak)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        progress = min(1.0, max(0, step - peak) / length)
        if schedule.kind == "cosine":
            return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))
        return floor + (1.0 - floor) * (1.0 - progress)

    return factor


def warmup_steps(config: Config) -> int:
    """Optimizer steps of a run's warm-up."""
    schedule = config.schedule
    if schedule.warmup_tokens is not None:
        return max(1, round(schedule.warmup_tokens / config.tokens_per_step))
    if schedule.warmup_steps is not None:
        return schedule.warmup_steps
    return math.floor(round(schedule.warmup_share * config.trainer.max_steps, 6))  # 0.29 of 100 is 28.999999999999996


def decay_steps(share: float, steps: int) -> int:
    """The last steps of a wsd run, which its decay takes: that share of them, at least one."""
    return max(1, round(share * steps))


def first_difference(before: Factor, now: Factor, steps: int) -> tuple[int, float, float] | None:
    """The first of so many steps in which two schedules differ, counted from 0, and their factors; None: they agree."""
    pairs = ((step, before(step), now(step)) for step in range(steps))
    return next((pair for pair in pairs if pair[1] != pair[2]), None)
