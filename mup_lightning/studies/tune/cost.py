"""What tuning and training the target cost: `mup-lightning tune --dry-run`, and the last line of a tune."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mup_lightning import tables
from mup_lightning.config.schema import Config
from mup_lightning.plan.plan import plan
from mup_lightning.studies.sweep.grid import Trial, look_up
from mup_lightning.studies.sweep.run import costs, measured_speed
from mup_lightning.studies.sweep.table import Record
from mup_lightning.studies.tune.proxies import not_transferred


def dry_run(
    trials: list[Trial], key: str, target: Config, records: dict[str, Record], workers: int | None, rounds: int
) -> str:
    """The small models, a line for each size, and what they would cost beside the large one.

    Args:
        trials: of the sweep.
        key: what is tuned.
        target: what it is tuned for.
        records: of finished trials.
        workers: as asked for.
        rounds: how often the grid may grow; 0: its values are fixed.
    """
    speed = measured_speed(trials, records)[0]
    by_shape: dict[tuple[int, int], list[Trial]] = {}
    for trial in trials:
        by_shape.setdefault((trial.config.model.width, trial.config.model.depth), []).append(trial)
    heading = f"width,depth,axis,base values of {key},seeds,runs,finished,tokens,FLOPs,minutes".split(",")
    lines = [heading]
    for (width, depth), group in sorted(by_shape.items()):
        values = sorted({look_up(trial.config, key) for trial in group})
        shown = [tables.power_of_two(value) for value in (values[0], values[-1])]
        cells: list[Any] = [
            width,
            depth,
            " and ".join(sorted({axis for trial in group for axis in trial.axes}, reverse=True)),
            f"{shown[0]} to {shown[1]} ({len(values)})" if len(values) > 1 else shown[0],
            ", ".join(map(str, sorted({trial.config.seed for trial in group}))),
            len(group),
            sum(trial.hash in records for trial in group),
            f"{sum(trial.checked.tokens for trial in group):,}",
            f"{sum(trial.checked.flops for trial in group):.2g}",
            f"{sum(trial.checked.work for trial in group) / speed / 60:.1f}",
        ]
        lines.append([str(cell) for cell in cells])
    config = trials[0].config
    said = [f"the small models, {config.recipe.optimizer}, {config.trainer.max_steps} steps:", ""]
    said += [tables.text(lines), "", costs(trials, records, workers)]
    if rounds:
        said.append(f"more values where the best is the first or last of them, at most {rounds} times")
    said.append(cost_of(target, sum(trial.checked.flops for trial in trials)))
    if differing := not_transferred([trial.config for trial in trials], target):
        said.append(f"not transferred by the recipe: {'; '.join(differing)}")
    return "\n".join(said)


def cost_of(target: Config, spent: float = 0.0) -> str:
    """What training the target takes.

    Args:
        target: the large model.
        spent: FLOPs of the small models, to compare; 0: do not.
    """
    # The learning rate is still to be found, so its floor may lie above the one given; neither costs anything.
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
