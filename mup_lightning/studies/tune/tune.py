"""`mup-lightning tune`: finds a base value of a large model on small ones, and writes the large one's configuration."""

from collections.abc import Sequence
from pathlib import Path

from mup_lightning.config.schema import Config
from mup_lightning.errors import UserError
from mup_lightning.files import check_folder
from mup_lightning.studies.sweep.grid import look_up
from mup_lightning.studies.sweep.run import dry_run, run_all_trials
from mup_lightning.studies.sweep.spec import Sweep, load
from mup_lightning.studies.transfer.figures import draw
from mup_lightning.studies.transfer.losses import read_losses
from mup_lightning.studies.transfer.report import text
from mup_lightning.studies.transfer.verdict import Group, transfer
from mup_lightning.studies.tune import FURTHER, ROUNDS, SWEEP, TuneSettings, law
from mup_lightning.studies.tune.prediction import predict
from mup_lightning.studies.tune.proxies import names_values, not_transferred, proxy_trials, results_of
from mup_lightning.studies.tune.target import caveats, cost_of, write_target

AROUND = 3
"""Powers of two on either side of the target's value that are tried if the sweep file names no values."""


def run(settings: TuneSettings, target: Config) -> int:
    """Find a base value for a target, and write it down. Returns 1 if a configuration has no result, 130 on Ctrl-C."""
    if target.run.resume is not None:
        raise UserError("run.resume is set, but tune trains small models, and continues with them by itself")
    folder = settings.out or Path("runs") / "tune" / target.run.name
    check_folder(folder)
    if settings.law:
        return law.run(settings, target, folder)
    if settings.results:
        runs, proxies, key, place = results_of(settings.results, target)
        _refuse_time(set(runs["axis"]), str(place))
        return _conclude(transfer(runs), list(proxies.values()), key, target, folder, place)
    sweep = load(settings.sweep or SWEEP, settings.set, tuning=True)
    _refuse_time({grid.size for grid in sweep.grids}, sweep.file)
    if settings.dry_run:
        print(_preview(sweep, target, folder, settings.workers))
        return 0
    below, above, runs = AROUND, AROUND, 0
    for _ in range(ROUNDS):
        trials = proxy_trials(sweep, target, below, above)
        if len(trials) == runs:  # the grid cannot grow any more
            break
        runs = len(trials)
        if code := run_all_trials(trials, folder, settings.workers, sweep.keep_runs):
            return code
        groups = groups_of(folder, sweep.value, {trial.hash for trial in trials})
        reached = {end for group in groups for best in group.optima for end in best.ends}
        if names_values(sweep) or not reached:
            break
        below, above = below + FURTHER * (-1 in reached), above + FURTHER * (1 in reached)
    return _conclude(groups, [trial.config for trial in trials], sweep.value, target, folder, folder)


def _refuse_time(axes: set[str], where: str) -> None:
    """Raise UserError for axes along which no value is the same at all sizes."""
    if over := sorted(axes & {"tokens", "batch"}):
        raise UserError(f"{where} has runs over {' and '.join(over)}, along which the best value moves; add --law")


def groups_of(folder: Path, key: str, hashes: set[str]) -> list[Group]:
    """What the results of these trials say; another tune, of another value, may have written the table meanwhile."""
    runs = read_losses(folder)
    return transfer(runs[runs["config_hash"].isin(hashes) & (runs["value"] == key)])


def _preview(sweep: Sweep, target: Config, folder: Path, workers: int | None) -> str:
    """What would be run, and what it costs."""
    trials = proxy_trials(sweep, target, AROUND, AROUND)
    lines = [dry_run(trials, folder, workers)]
    if not names_values(sweep):
        lines.append(f"more values if the best is the first or last of them, at most {ROUNDS - 1} times")
    lines.append(cost_of(target, sum(trial.checked.flops for trial in trials)))
    if differing := not_transferred([trial.config for trial in trials], target):
        lines.append(f"not transferred by the recipe: {'; '.join(differing)}")
    return "\n".join(lines)


def _conclude(
    groups: list[Group], proxies: Sequence[Config], key: str, target: Config, folder: Path, source: Path
) -> int:
    """Print what was found, draw it, and write the target's configuration with the value."""
    base, more = caveats(proxies, target, source)
    shape = (target.model.width, target.model.depth)
    result = predict(groups, key, shape, more)
    own = (target.recipe.base_width, target.recipe.base_depth)
    said = result.text(base, shape, look_up(target, key) if base == own else None)
    print(f"\n{text(groups)}\n\n{said}")
    counted = f"{len(proxies)} runs of {groups[0].steps} steps, seeds: {max(group.seeds for group in groups)}"
    comment = [f"Tuned on small models, for {shape}. {counted}: {source / 'results.csv'}", *said.splitlines()]
    # A file for each value, so that the weight decay's does not replace the learning rate's.
    file = folder / ("tuned.yaml" if key == "recipe.lr" else f"tuned_{key.rpartition('.')[2]}.yaml")
    found = {key: result.value, "recipe.base_width": base[0], "recipe.base_depth": base[1]}
    return write_target(file, target, found, comment, draw(groups, folder))
