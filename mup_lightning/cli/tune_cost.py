"""What tuning costs, and what the target's own training does: `mup-lightning tune --dry-run`, and its last line."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from mup_lightning import tables
from mup_lightning.cli import sweep as sweeps
from mup_lightning.config.schema import Config
from mup_lightning.plan.plan import plan
from mup_lightning.studies.sweep.grid import Cell, look_up
from mup_lightning.studies.tune.kinship import cautions


def dry_run(cells: list[Cell], key: str, target: Config, folder: Path, workers: int | None, rounds: int) -> str:
    """The small models, a line for each size, and what they would cost beside the large one.

    Args:
        cells: of the sweep.
        key: what is tuned.
        target: what it is tuned for.
        folder: of the results.
        workers: as asked for.
        rounds: how often the grid may grow; 0: its values are fixed.
    """
    estimate, present = sweeps.estimates(cells, folder)
    alike: dict[tuple[int, int], list[Cell]] = {}
    for cell in cells:
        alike.setdefault((cell.config.model.width, cell.config.model.depth), []).append(cell)
    lines = [["width", "depth", "axis", f"base values of {key}", "seeds", "runs", "done", "tokens", "FLOPs", "minutes"]]
    for (width, depth), group in sorted(alike.items()):
        lines.append(
            [
                str(width),
                str(depth),
                " and ".join(sorted({axis for cell in group for axis in cell.axes}, reverse=True)),
                _range([look_up(cell.config, key) for cell in group]),
                ", ".join(str(seed) for seed in sorted({cell.config.seed for cell in group})),
                str(len(group)),
                str(sum(cell.hash in present for cell in group)),
                f"{sum(cell.tokens for cell in group):,}",
                f"{sum(cell.flops for cell in group):.2g}",
                f"{sum(map(estimate.seconds, group)) / 60:.1f}",
            ]
        )
    small = f"the small models, {cells[0].config.recipe.optimizer}, {cells[0].config.trainer.max_steps} steps:"
    said = [small, "", tables.text(lines), "", sweeps.costs(cells, folder, workers)]
    if rounds:
        said.append(f"more values where the best is the first or last of them, at most {rounds} times")
    said.append(of_target(target, sum(cell.flops for cell in cells)))
    if differing := cautions([cell.config for cell in cells], target):
        said.append(f"not transferred by the recipe: {'; '.join(differing)}")
    return "\n".join(said)


def of_target(target: Config, spent: float = 0.0) -> str:
    """What training the target takes.

    Args:
        target: the large model.
        spent: operations of the small models, to compare; 0: not.
    """
    # The rate is still to be found, so that its floor may lie above the one given; neither costs anything.
    free = replace(target, schedule=replace(target.schedule, min_lr=0.0))
    planned = plan(free, device="cpu" if target.trainer.accelerator == "cpu" else "cuda")
    flops = planned.flops_of(target.trainer.max_steps)
    times = ""
    if spent:
        ratio = float(f"{flops / spent:.2g}")
        times = f", {ratio:,.0f} times" if ratio >= 10 else f", {ratio:g} times"
        times += " the small models together"
    return (
        f"the target, width {target.model.width}, depth {target.model.depth}: {target.trainer.max_steps:,} steps of "
        f"{target.data.batch_size} x {target.model.context} tokens, {flops:.2g} FLOPs{times}"
    )


def _range(values: list[float]) -> str:
    """From the lowest to the highest, as powers of two where they are."""
    low, high = min(values), max(values)
    count = len(set(values))
    return f"{_power(low)} to {_power(high)} ({count})" if count > 1 else _power(low)


def _power(value: float) -> str:
    if value > 0 and (exponent := math.log2(value)).is_integer():
        return f"2^{exponent:g}"
    return f"{value:g}"
