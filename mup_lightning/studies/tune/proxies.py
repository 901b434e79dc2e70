"""The small models that a base value is tuned on, and what must be equal between them and the model that it is for."""

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from mup_lightning.config.schema import Config, leaves
from mup_lightning.errors import UserError
from mup_lightning.optim.registry import options_in_force, used_sections
from mup_lightning.studies.sweep.grid import Trial, expand, look_up
from mup_lightning.studies.sweep.spec import Grid, Sweep

_SCALED = "model.width model.depth recipe.base_width recipe.base_depth".split()
"""What the recipe scales by."""

NOT_TRANSFERRED = """
    data.tokenizer data.batch_size data.path model.context model.head_dim model.dropout trainer.max_steps
    trainer.precision trainer.gradient_clip schedule.min_lr
""".split()
"""What moves the best values, too, in ways that no recipe here follows. Everything else must be the same."""

_MAY_DIFFER = {*_SCALED, *NOT_TRANSFERRED, "schedule.warmup_steps", "model.heads", "model.head_size"}
_MAY_DIFFER |= {"model.vocab_size", "model.loss_chunk", "seed"}
"""Heads are compared by the dimension that follows from them, the warm-up by its share of the run."""

_OF_THE_TARGET = tuple(
    "run. trainer.strategy trainer.devices trainer.nodes model.width model.depth model.heads model.vocab_size "
    "model.loss_chunk".split()
)
"""What proxies do not take over from the target."""


def proxy_trials(sweep: Sweep, target: Config, below: int, above: int) -> list[Trial]:
    """The trials of a sweep over small models that in all that it does not say are like the target.

    If it names no values, they lie around the target's, from `below` powers of two below it to `above` above. Raises
    UserError where it contradicts the target, or training would refuse a configuration.
    """
    grids, key = list(sweep.grids), sweep.value
    if any(key in grid.set for grid in grids):
        raise UserError(f"{key} is swept, so --set and {sweep.file} cannot fix it; --{key} says what to search around")
    if not names_values(sweep):
        own = look_up(target, key)
        if isinstance(own, bool) or not isinstance(own, int | float) or own <= 0:
            raise UserError(f"{key} is {own!r} in the target; expected a number above 0 to search around (--{key})")
        middle = round(math.log2(own))
        values = [2.0**exponent for exponent in range(middle - below, middle + above + 1)]
        for number, grid in enumerate(grids):  # no learning rate may be below the floor of the schedule
            floor = float(grid.set.get("schedule.min_lr", target.schedule.min_lr)) if key == "recipe.lr" else 0.0
            if not (above_floor := [value for value in values if value >= floor]):
                raise UserError(f"every {key} that would be tried around {own:g} lies below schedule.min_lr {floor:g}")
            grids[number] = replace(grid, vary=grid.vary | {key: above_floor})
    elif any(key not in grid.vary for grid in grids):
        raise UserError(f"{sweep.file}: some grids vary {key}, others do not; expected all of them or none")
    grids = [replace(grid, set=_warmup(grid, target) | grid.set) for grid in grids]
    trials = expand(replace(sweep, grids=tuple(grids)), like_target(target, grids))
    refuse_incompatible([trial.config for trial in trials], target, key, sweep.file)
    return trials


def names_values(sweep: Sweep) -> bool:
    """Whether a sweep file names the values to try."""
    return any(sweep.value in grid.vary for grid in sweep.grids)


def like_target(target: Config, grids: Sequence[Grid]) -> dict[str, Any]:
    """Dotted key -> value of all that proxies take over from their target.

    The base shape stays: the recipe scales all base values from it, to smaller models as to larger ones. So does the
    dimension of the heads, which the recipe does not scale by, if it divides all widths.
    """
    values = {key: value for key, value in leaves(asdict(target)).items() if not key.startswith(_OF_THE_TARGET)}
    widths = [width for grid in grids for width in grid.vary.get("model.width", [grid.set.get("model.width")])]
    if all(isinstance(width, int) and width % target.model.head_dim == 0 for width in widths):
        values["model.head_size"] = target.model.head_dim
    return values


def _warmup(grid: Grid, target: Config) -> dict[str, Any]:
    """The target's warm-up as the same share of a shorter run; empty if it follows the length by itself."""
    steps = grid.set.get("trainer.max_steps", target.trainer.max_steps)
    if not target.schedule.warmup_steps or "trainer.max_steps" in grid.vary:
        return {}
    return {"schedule.warmup_steps": max(1, round(_warmup_share(target) * int(steps)))}


def _warmup_share(config: Config) -> float:
    """Share of the run that the warm-up takes: schedules are alike if this is equal, not if the steps are."""
    steps = config.schedule.warmup_steps
    return 0.1 if steps is None else steps / config.trainer.max_steps


def refuse_incompatible(proxies: Sequence[Config], target: Config, swept: str, where: str) -> None:
    """Raise UserError for proxies that contradict the target, or have several base shapes (SP alone has none)."""
    for proxy in proxies:
        if found := incompatibilities(proxy, target, swept):
            raise UserError(f"{where}: the best value would not carry over: {'; '.join(found)}. Make them the same")
    bases = sorted({(proxy.recipe.base_width, proxy.recipe.base_depth) for proxy in proxies})
    if len(bases) > 1 and target.recipe.parametrization == "mup":
        raise UserError(
            f"{where}: the proxies have several base shapes, {' and '.join(map(str, bases))}; expected one, or their "
            f"values mean different things"
        )


def incompatibilities(proxy: Config, target: Config, swept: str) -> list[str]:
    """What makes a proxy useless for a target, in words: optimizer, base values, LayerNorm and so on.

    `swept` is the dotted key that is tuned.
    """
    theirs, ours = _identity(target), _identity(proxy)
    mup = "mup" in (proxy.recipe.parametrization, target.recipe.parametrization)  # no other has a branch depth
    skipped = _MAY_DIFFER | {swept} | (set() if mup else {"recipe.branch_depth"})
    return [
        f"{key} is {ours[key]} in the proxy, {theirs[key]} in the target"
        for key in ours
        if key not in skipped and key in theirs and ours[key] != theirs[key]
    ]


def _identity(config: Config) -> dict[str, Any]:
    """Dotted key -> value of all that determines a training, with the options in force of the rules that it uses."""
    used = used_sections(config.recipe.optimizer)
    rules = {name: options_in_force(config.rules, name) for name in used}
    return leaves(config.identity() | {"rules": rules}) | {"model.attention_scale": config.model.attention_scale}


def not_transferred(proxies: Sequence[Config], target: Config) -> list[str]:
    """What differs and is not transferred, in words: of a value that proxies differ in, all that they have."""
    found = []
    for key in NOT_TRANSFERRED:
        theirs = look_up(target, key)
        ours = sorted({look_up(proxy, key) for proxy in proxies} - {"auto"})
        if theirs != "auto" and any(value != theirs for value in ours):
            found.append(f"{key} is {' or '.join(map(str, ours))} in the proxies, {theirs} in the target")
    share = _warmup_share(target)
    # A difference of less than a step is rounding.
    if any(abs(_warmup_share(proxy) - share) * proxy.trainer.max_steps >= 1 for proxy in proxies):
        shares = " or ".join(sorted({f"{_warmup_share(proxy):.1%}" for proxy in proxies}))
        found.append(f"the warm-up takes {shares} of the run in the proxies, {share:.1%} in the target")
    return found
