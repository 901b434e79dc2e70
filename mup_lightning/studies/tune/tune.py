"""`mup-lightning tune`: finds a base value of a large model on small ones, and writes the large one's configuration."""

import shlex
from dataclasses import replace
from pathlib import Path

from mup_lightning.config.schema import Config
from mup_lightning.errors import UserError
from mup_lightning.files import check_folder, make_folder
from mup_lightning.plan.plan import plan
from mup_lightning.studies.sweep.grid import Trial, look_up
from mup_lightning.studies.sweep.run import dry_run, run_trials
from mup_lightning.studies.sweep.spec import load, setting
from mup_lightning.studies.sweep.table import read_trials
from mup_lightning.studies.transfer.figures import draw
from mup_lightning.studies.transfer.losses import read_losses
from mup_lightning.studies.transfer.report import text
from mup_lightning.studies.transfer.transfer import Transfer, transfer
from mup_lightning.studies.tune import report
from mup_lightning.studies.tune.prediction import ends, predict
from mup_lightning.studies.tune.proxies import (
    incompatibilities,
    names_values,
    not_transferred,
    proxy_trials,
    refuse_incompatible,
)
from mup_lightning.studies.tune.settings import SWEEP, TuneSettings

AROUND = 3
"""Powers of two on either side of the target's value that are tried if the sweep file names no values."""

FURTHER = 2
"""Powers of two by which the grid grows where the best value is the last one tried."""

ROUNDS = 4
"""How often the sweep is run, each time with a larger grid."""


def run(settings: TuneSettings, target: Config) -> int:
    """Find a base value for a target, and write it down.

    Returns:
        0; 1 if a configuration has no result; 130 after Ctrl-C.
    """
    if target.run.resume is not None:
        raise UserError(
            "run.resume is set, but tune trains small models, and goes on with them by itself; leave it out"
        )
    folder = settings.out or Path("runs") / "tune" / target.run.name
    check_folder(folder)
    if settings.results:
        return _from_results(settings.results, target, folder)
    sweep = load(settings.sweep or SWEEP, dict(setting(text) for text in settings.set), tuning=True)
    below = above = AROUND
    trials: list[Trial] = []
    groups: list[Transfer] = []
    for _ in range(ROUNDS):
        before, trials = trials, proxy_trials(sweep, target, below, above)
        if len(trials) == len(before):  # it cannot grow any more
            break
        if settings.dry_run:
            print(dry_run(trials, folder, settings.workers))
            if not names_values(sweep):
                print(f"more values if the best is the first or last of them, at most {ROUNDS - 1} times")
            print(cost_of(target, sum(trial.checked.flops for trial in trials)))
            if differing := not_transferred([trial.config for trial in trials], target):
                print(f"not transferred by the recipe: {'; '.join(differing)}")
            return 0
        summary = run_trials(trials, folder, settings.workers, sweep.keep_runs)
        if summary.exit_code:
            return summary.exit_code
        if summary.finished < len(trials):
            print(f"{folder} is not complete: repeat this command once the other process has ended", flush=True)
            return 1
        groups = groups_of(folder, trials)
        reached = {end for group in groups for best in group.optima for end in ends(group, best)}
        if names_values(sweep) or not reached:
            break
        below, above = below + FURTHER * (-1 in reached), above + FURTHER * (1 in reached)
    _conclude(groups, [trial.config for trial in trials], sweep.value, target, folder, folder)
    return 0


def groups_of(folder: Path, trials: list[Trial]) -> list[Transfer]:
    """What the results of these trials say. Other tunes may have swept other values through the same configurations."""
    own = {(trial.hash, axis, trial.value) for trial in trials for axis in trial.axes}
    runs = read_losses(folder / "results.csv")
    places = zip(runs["config_hash"], runs["axis"], runs["value"], strict=True)
    return transfer(runs[[place in own for place in places]])


def _from_results(results: Path, target: Config, folder: Path) -> int:
    """Use those results of a finished sweep whose models are like the target."""
    place = results if results.is_dir() else results.parent
    records = read_trials(place)
    swept = {str(row["value"]) for record in records.values() for row in record["rows"]}
    if len(swept) != 1:
        found = f"sweeps of several values, {' and '.join(sorted(swept))}" if swept else "no results"
        raise UserError(
            f"{place} has {found}; expected the folder of a sweep of one value (of several, repeat the tune that ran "
            f"the one that you want, with its --sweep and this folder as --out: it repeats no run)"
        )
    (key,) = swept
    known = {name: Config.from_plain(record["config"]) for name, record in records.items() if record["config"]}
    differences = {name: incompatibilities(config, target, key) for name, config in known.items()}
    alike = {name: config for name, config in known.items() if not differences[name]}
    if not known:
        raise UserError(f"{place} does not say which configurations its rows have; expected the folder of a sweep")
    nearest = min(known, key=lambda name: len(differences[name]))
    refuse_incompatible(list(alike.values()) or [known[nearest]], target, key, str(place))
    runs = read_losses(place / "results.csv")
    groups = transfer(runs[runs["config_hash"].isin(alike)])
    _conclude(groups, list(alike.values()), key, target, folder, place)
    return 0


def _conclude(
    groups: list[Transfer], proxies: list[Config], key: str, target: Config, folder: Path, source: Path
) -> None:
    """Print what was found, draw it, and write the target's configuration with the value."""
    base, own = _base(proxies[0]), _base(target)
    differing = not_transferred(proxies, target)
    more = [f"not transferred by the recipe: {'; '.join(differing)}"] if differing else []
    if target.recipe.parametrization == "sp":
        more.append("recipe.parametrization is sp, which transfers nothing by design")
        base = own  # SP has none, so that the proxies' may be any
    elif base != own:
        more.append(
            f"the target's own base shape is {own}, the proxies' is {base}: with the file's base shape all other base "
            f"values (init_std, eps, weight_decay, multipliers) belong to {base} too, as they did in the proxies"
        )
    shape = (target.model.width, target.model.depth)
    result = predict(groups, key, shape, more)
    present = look_up(target, key) if base == own else None
    print(f"\n{text(groups)}\n\n{report.text(result, base, shape, present)}")
    seeds = max(group.seeds for group in groups)
    counted = "one seed" if seeds == 1 else f"up to {seeds} seeds"
    origin = f"{len(proxies)} runs of {groups[0].steps} steps, {counted}: {source / 'results.csv'}"
    make_folder(folder)
    # A file for each value, so that the weight decay's does not replace the learning rate's.
    file = folder / ("tuned.yaml" if key == "recipe.lr" else f"tuned_{key.rpartition('.')[2]}.yaml")
    report.write(result, base, target, origin, present, file)
    for picture in draw(groups, folder):
        print(f"wrote {picture}")
    print(f"wrote {file}\n\nnext: {cost_of(target)}\n  mup-lightning train -c {shlex.quote(str(file))}", flush=True)


def _base(config: Config) -> tuple[int, int]:
    return config.recipe.base_width, config.recipe.base_depth


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
    ratio = f", {float(f'{flops / spent:.2g}'):,g} times the small models together" if spent else ""
    return (
        f"the target, width {target.model.width}, depth {target.model.depth}: {target.trainer.max_steps:,} steps of "
        f"{target.data.batch_size} x {target.model.context} tokens, {flops:.2g} FLOPs{ratio}"
    )
