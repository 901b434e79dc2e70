"""The sweep over a target's proxies: the target's own configuration, at the shapes and lengths of a sweep file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from mup_lightning.config.schema import Config
from mup_lightning.errors import UserError
from mup_lightning.studies.sweep.grid import Cell, Compose, expand, look_up
from mup_lightning.studies.sweep.spec import Grid, Sweep, scalar
from mup_lightning.studies.tune.kinship import as_proxy, differences, warmup_share
from mup_lightning.training.checkpoint import plain

AROUND = 3
"""Powers of two on either side of the target's own value that are tried where the sweep file names none."""

FURTHER = 2
"""Powers of two by which the grid grows where the best value is the last one tried."""


def proxy_cells(sweep: Sweep, target: Config, compose: Compose, *, below: int, above: int) -> list[Cell]:
    """The configurations of the sweep.

    Args:
        sweep: says shapes, seeds, lengths; values too, or none of them.
        target: what is tuned for. Its configuration comes before all that the sweep file says.
        compose: see `Compose`.
        below: powers of two below the target's value that are tried, where the sweep file names none.
        above: the same above.

    Raises:
        UserError: the sweep file contradicts the target, or a configuration that training would refuse.
    """
    grids = list(sweep.grids)
    if varies_itself(sweep):
        if any(sweep.value not in grid.vary for grid in grids):
            raise UserError(f"{sweep.file}: some grids vary {sweep.value}, others do not; expected all of them or none")
    else:
        middle = _middle(sweep, target)
        values = [2.0**x for x in range(round(math.log2(middle)) - below, round(math.log2(middle)) + above + 1)]
        grids = [
            replace(grid, vary=grid.vary | {sweep.value: _above_floor(values, grid, sweep, target)}) for grid in grids
        ]
    with TemporaryDirectory() as folder:
        file = Path(folder) / "target.yaml"
        file.write_text(yaml.safe_dump(plain(as_proxy(target, _widths(grids))), sort_keys=False))
        grids = [replace(grid, configs=(str(file), *grid.configs)) for grid in grids]
        cells = expand(replace(sweep, grids=tuple(grids)), _in_proportion(compose, target))
    refuse_strangers([cell.config for cell in cells], target, sweep.value, sweep.file)
    return cells


def _middle(sweep: Sweep, target: Config) -> float:
    """Where the grid begins: what the sweep file or --set fixes the swept value to, else the target's own."""
    fixed = {
        str(grid.set[sweep.value]): scalar(grid.set[sweep.value]) for grid in sweep.grids if sweep.value in grid.set
    }
    if len(fixed) > 1:
        raise UserError(f"{sweep.file} sets {sweep.value} to {' and '.join(fixed)}; expected one middle of the grid")
    middle = next(iter(fixed.values()), look_up(target, sweep.value))
    where = f"{sweep.file} or --set" if fixed else "the target"
    if isinstance(middle, bool) or not isinstance(middle, int | float):
        raise UserError(f"{sweep.value} is {middle!r} in {where}; expected a number to search around")
    if not 0 < middle < math.inf:
        raise UserError(f"{sweep.value} is {middle:g} in {where}; name its values in {sweep.file}, under vary")
    return middle


def _above_floor(values: Sequence[float], grid: Grid, sweep: Sweep, target: Config) -> list[float]:
    """No rate may lie below the floor of its schedule."""
    floor = scalar(grid.set.get("schedule.min_lr", target.schedule.min_lr))
    if sweep.value != "recipe.lr" or not isinstance(floor, int | float):
        return list(values)
    left = [value for value in values if value >= floor]
    if not left:
        raise UserError(
            f"recipe.lr: every value around {values[len(values) // 2]:g} that would be tried lies below "
            f"schedule.min_lr {floor:g}, where the schedule ends; lower that, or begin from a higher recipe.lr"
        )
    return left


def _widths(grids: Sequence[Grid]) -> list[int]:
    """Of all proxies; empty where a grid does not say."""
    found: list[int] = []
    for grid in grids:
        widths = grid.vary.get("model.width", [grid.set["model.width"]] if "model.width" in grid.set else [])
        if not widths or not all(isinstance(width, int) for width in widths):
            return []
        found += widths
    return found


def _in_proportion(compose: Compose, target: Config) -> Compose:
    """Compose with the target's warm-up as the same part of a shorter run, unless the sweep names another one."""
    steps = target.schedule.warmup_steps
    share = warmup_share(target)

    def scaled(files: Sequence[str], settings: dict[str, Any]) -> Config:
        config = compose(files, settings)
        if steps and config.schedule.warmup_steps == steps and "schedule.warmup_steps" not in settings:
            own = max(1, round(share * config.trainer.max_steps))
            config.schedule = replace(config.schedule, warmup_steps=own)
        return config

    return scaled


def varies_itself(sweep: Sweep) -> bool:
    """Whether the sweep file names the values to try."""
    return any(sweep.value in grid.vary for grid in sweep.grids)


def refuse_strangers(proxies: Sequence[Config], target: Config, swept: str, where: str) -> None:
    """Refuse proxies that the target contradicts, or that were tuned at several base shapes: SP alone knows none.

    Raises:
        UserError: naming what differs.
    """
    for proxy in proxies:
        if found := differences(proxy, target, swept):
            raise UserError(
                f"{where}: the best value would not carry over: {'; '.join(found[:4])}"
                f"{f'; and {len(found) - 4} more' if len(found) > 4 else ''}. Make them the same"
            )
    bases = sorted({(proxy.recipe.base_width, proxy.recipe.base_depth) for proxy in proxies})
    if len(bases) > 1 and target.recipe.parametrization != "sp":
        raise UserError(
            f"{where}: the proxies have several base shapes, {' and '.join(map(str, bases))}; expected one, or their "
            f"values mean different things"
        )
