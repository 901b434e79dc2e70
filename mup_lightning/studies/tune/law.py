"""`mup-lightning tune --law`: one law of the best learning rate over width, depth, tokens and batch, from few runs.

The cells of the sweep file are run sparsely: the centre first, whose speed says how far a budget reaches and whose best
rate is where the other cells begin; then few rates a cell, more where the best is the last tried, and all seeds around
the best. What a round runs follows from the results of those before it, so that a repeated command repeats no run.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from mup_lightning.config.load import build_config
from mup_lightning.config.schema import Config
from mup_lightning.errors import UserError
from mup_lightning.files import write_json
from mup_lightning.spectral.families import FAMILIES
from mup_lightning.spectral.horizon import AXES, SDE
from mup_lightning.spectral.recipe import exponents
from mup_lightning.spectral.roles import Role
from mup_lightning.studies.sweep.grid import Checker, Trial
from mup_lightning.studies.sweep.results import read_trials
from mup_lightning.studies.sweep.run import dry_run, how_many, run_all_trials, speed_of
from mup_lightning.studies.sweep.spec import Grid, Sweep, load
from mup_lightning.studies.transfer.estimate import Optimum
from mup_lightning.studies.transfer.figures import draw_law
from mup_lightning.studies.transfer.law import FAR, LawFit, Place, cells_of, fit, name, text
from mup_lightning.studies.transfer.losses import read_losses
from mup_lightning.studies.tune import FURTHER, LAW_SWEEP, ROUNDS, TuneSettings, proxies

AROUND = 2  # powers of two on either side of where a cell begins that are tried with the first seed
BESIDE = 1  # powers of two on either side of the best that all seeds are run at
SHORTEST = 100  # steps that no run of a stretched design has fewer of
ALLOWANCE = 1.25  # what grids that grow may cost on top, in the estimate of a design

_KEYS = {"width": "model.width", "depth": "model.depth", "tokens": "tokens", "batch": "data.batch_size"}

Rates = dict[float, set[int]]  # log2 of a rate -> the seeds to run it with


@dataclass
class Design:
    """The cells of a sweep file for a target."""

    sweep: Sweep
    target: Config
    cells: list[tuple[Place, Grid]]  # where each is, and its grid, without the rate and the seed
    rates: list[float]  # to try, where the file names them
    seeds: list[int]  # the first is run at all rates, the others around the best
    checker: Checker = field(default_factory=Checker)

    @classmethod
    def of(cls, sweep: Sweep, target: Config) -> "Design":
        """The design of a file."""
        cells, own = [], ("seed", sweep.value)
        for grid in sweep.grids:
            vary = {key: values for key, values in grid.vary.items() if key not in own}
            fixed = {key: value for key, value in grid.set.items() if key not in own}
            for values in product(*vary.values()):
                cells.append(Grid(grid.configs, fixed | dict(zip(vary, values, strict=True)), {}, grid.axis))
        said = {key: value for grid in sweep.grids for key, value in grid.vary.items()}
        seeds = said.get("seed", [sweep.grids[0].set.get("seed", target.seed)])
        return cls(sweep, target, _placed(cells, target), said.get(sweep.value, []), seeds)

    @property
    def places(self) -> list[Place]:
        """Of all cells."""
        return [place for place, _ in self.cells]

    @property
    def centre(self) -> Place:
        """The place that most grids share."""
        return Counter(self.places).most_common(1)[0][0]

    def trials(self, wanted: Mapping[Place, Rates]) -> list[Trial]:
        """The trials of these rates and seeds, each on all axes of its cell."""
        grids = []
        for place, cell in self.cells:
            low = proxies.lowest(cell, self.target)
            for rate, seeds in wanted.get(place, {}).items():
                if 2.0**rate >= low:
                    grids.append(replace(cell, vary={self.sweep.value: [2.0**rate], "seed": sorted(seeds)}))
        if not grids:
            raise UserError(f"every {self.sweep.value} that would be tried lies below schedule.min_lr {low:g}")
        return proxies.proxy_trials(replace(self.sweep, grids=tuple(grids)), self.target, 0, 0, self.checker)

    def first(self, start: float) -> Rates:
        """The rates that a cell begins with."""
        middle = [float(round(start) + step) for step in range(-AROUND, AROUND + 1)]
        return {rate: {self.seeds[0]} for rate in (map(math.log2, self.rates) if self.rates else middle)}

    def next(self, best: Optimum | None, rates: Rates) -> Rates:
        """The rates of a cell, and those that its results call for: beyond the end that is best, or more seeds."""
        more = {rate: set(seeds) for rate, seeds in rates.items()}
        ends = best.ends if best else {-1}
        if ends and not self.rates:
            for end, step in product(ends, range(1, FURTHER + 1)):
                more[(min(rates) if end < 0 else max(rates)) + end * step] = {self.seeds[0]}
        elif best:
            for rate in rates:
                if abs(rate - best.best_value) <= BESIDE:
                    more[rate] |= set(self.seeds)
        return more

    def minutes(self, speed: float, workers: int) -> float:
        """What all cells cost, at work per second of a worker."""
        runs = len(self.first(0)) + (2 * BESIDE + 1) * (len(self.seeds) - 1)
        rate = round(math.log2(self.target.recipe.lr))
        trials = self.trials({place: {rate: {self.seeds[0]}} for place in self.places})
        return ALLOWANCE * runs * sum(trial.checked.work for trial in trials) / speed / workers / 60

    def stretched(self, reach: Mapping[str, float]) -> "Design":
        """The design with distances from the centre that many times as far along each axis, in whole doublings."""
        centre = dict(zip(AXES, self.centre, strict=True))
        cells = []
        for place, cell in self.cells:
            own = dict(cell.set)
            for axis, side in zip(AXES, place, strict=True):
                if reach[axis] > 1 and (key := _KEYS[axis]) in own:
                    times = 2 ** math.floor(reach[axis] * math.log2(side / centre[axis]) + 0.5)
                    own[key] = max(1, round(own[key] / side * centre[axis] * times))
            cells.append(replace(cell, set=own))
        return replace(self, cells=_placed(cells, self.target))

    def within(self, minutes: float, speed: float, workers: int) -> "Design":
        """The design that reaches as far as the minutes allow, and no further than the target. UserError: none fits."""
        if (least := self.minutes(speed, workers)) > minutes:
            small = f"--budget {minutes:g} is too small for the design of {self.sweep.file}"
            raise UserError(f"{small}: it needs {math.ceil(least)} minutes on {workers} workers (or a smaller file)")
        reach, found = dict.fromkeys(AXES, 1.0), self
        sides = dict(zip(AXES, zip(*self.places, strict=True), strict=True))
        limits = [max(own, *sides[axis]) for own, axis in zip(_of(self.target), AXES, strict=True)]
        growing = [axis for axis in ("tokens", "batch", "width", "depth") if len(set(sides[axis])) > 1]
        while growing:
            axis = growing.pop(0)
            further = reach | {axis: reach[axis] + 0.5}
            design = self.stretched(further)
            shortest = min(tokens / batch for _, _, tokens, batch in design.places)
            fits = all(side <= most for place in design.places for side, most in zip(place, limits, strict=True))
            if fits and (axis != "batch" or shortest >= SHORTEST) and design.minutes(speed, workers) <= minutes:
                reach, found = further, design
                growing.append(axis)
        return found


def _placed(cells: Sequence[Grid], target: Config) -> list[tuple[Place, Grid]]:
    """Where each cell is, and the cell."""
    like, found = proxies.like_target(target, cells), []
    for cell in cells:
        said = {key: value for key, value in cell.set.items() if key != "tokens"}
        width, depth, tokens, batch = _of(build_config([like, *cell.configs, said]))
        found.append(((width, depth, cell.set.get("tokens", tokens), batch), cell))
    return found


def _of(target: Config) -> Place:
    return target.model.width, target.model.depth, target.tokens, target.tokens_per_step


def run(settings: TuneSettings, target: Config, folder: Path) -> int:
    """Fit the law to a sweep over small models, or to one that exists, and write it with the target's configuration."""
    if (rule := target.recipe.time_rule) != "none":
        raise UserError(f"recipe.time_rule is {rule}, and a law is fitted to runs under none; leave it out")
    if settings.results:
        runs, small, key, place = proxies.results_of(settings.results, target, tables=True)
        _refuse_value(key, str(place))
        return _conclude(fit(*cells_of(runs)), list(small.values()), target, folder, place)
    sweep = load(settings.sweep or LAW_SWEEP, settings.set, tuning=True)
    _refuse_value(sweep.value, sweep.file)
    design = Design.of(sweep, target)
    start, centre = math.log2(target.recipe.lr), design.centre
    wanted: dict[Place, Rates] = {centre: design.first(start)}
    first = design.trials(wanted)
    workers = max(1, how_many(first * len(design.cells), settings.workers))
    if settings.dry_run:
        speed, _ = speed_of(first, read_trials(folder))
        design = design.within(settings.budget, speed, workers) if settings.budget else design
        trials = design.trials({place: design.first(start) for place in design.places})
        seeds, minutes = ", ".join(map(str, design.seeds)), design.minutes(speed, workers)
        print(dry_run(trials, folder, settings.workers))
        print(
            f"then seeds {seeds} at the best {2 * BESIDE + 1} rates of each, and more rates where the best is the last "
            f"tried: about {minutes:.0f} minutes of {workers} workers in all"
        )
        print(proxies.cost_of(target, sum(trial.checked.flops for trial in trials)))
        return 0
    known: set[str] = set()
    for _ in range(2 * ROUNDS):
        trials = design.trials(wanted)
        if {trial.hash for trial in trials} == known:  # nothing more is to be learned, or allowed
            break
        if code := run_all_trials(trials, folder, settings.workers, sweep.keep_runs):
            return code
        runs, known = read_losses(folder), {trial.hash for trial in trials}
        cells, noise = cells_of(runs[runs["config_hash"].isin(known)])
        if len(wanted) > 1:
            wanted = {place: design.next(best, wanted[place]) for place, best in cells.items()}
            continue
        if settings.budget:
            design = design.within(settings.budget, speed_of(first, read_trials(folder))[0], workers)
        best = next(iter(cells.values()))
        start = best.best_value if best else start - FURTHER
        wanted = {place: design.first(start) for place in design.places} | wanted
    return _conclude(fit(cells, noise), [trial.config for trial in trials], target, folder, folder)


def _refuse_value(key: str, where: str) -> None:
    if key != "recipe.lr":
        raise UserError(f"{where} is of {key}; --law fits the law of recipe.lr, which recipe.time_rule can use")


def _conclude(found: LawFit, small: Sequence[Config], target: Config, folder: Path, source: Path) -> int:
    """Print the law and what it says of the target; write law.json, its figure, and the target's configuration."""
    base, more = proxies.caveats(small, target, source, ("trainer.max_steps", "data.batch_size"))
    place, recipe = _of(target), target.recipe
    derived = exponents(FAMILIES[recipe.optimizer], Role.HIDDEN, recipe.branch_depth, horizon=SDE).lr
    value, half_width = found.at(place)
    said = [
        f"log2 of the best recipe.lr at base shape {base}: {found.model.coefficients[0]:.2f} in the middle of the runs",
        "Exponents are relative to the recipe: 0 says, over width and depth, that what it derives is right, and over",
        "tokens and batch that the best rate does not move. The runs were trained under recipe.time_rule none.",
        text(found, {"tokens": float(derived.tokens), "batch": float(derived.batch)}),
        f"at the target, {name(place)}: best 2^{value:.2f}, 95 % between 2^{value - half_width:.2f} and "
        f"2^{value + half_width:.2f}, if the law goes on so far",
    ]
    for axis in AXES:
        times = found.beyond(axis, place)
        where = f"{times:,.3g} times beyond the runs" if times > 1 else "among the runs"
        said.append(f"  {axis:<7} {where}" + "; the best rate is taken not to move" * (axis not in found.axes))
        if times > FAR:
            more.append(f"{axis} of the target is {times:,.0f} times beyond the runs: a longer ladder would tell")
    said += [f"warning: {caveat}" for caveat in more]
    print("\n" + "\n".join(said))
    law, file = found.law(target.recipe.optimizer, "recipe.lr", str(source)), folder / "law.json"
    values: dict[str, Any] = {"recipe.base_width": base[0], "recipe.base_depth": base[1]}
    write_json(file, asdict(law))
    if {"tokens", "batch"} & set(found.axes):
        tokens, batch = round(law.at["tokens"]), round(law.at["batch"])
        value, _ = found.at((place[0], place[1], tokens, batch))
        values |= {"recipe.time_rule": f"fitted:{file}", "recipe.base_tokens": tokens, "recipe.base_batch": batch}
    values["recipe.lr"] = float(f"{2**value:.4g}")
    comment = [f"By the law of small models, for {name(place)}; {source}", *"\n".join(said).splitlines()]
    figure = draw_law(found, place, folder / "law.png")
    return proxies.write_target(folder / "tuned.yaml", target, values, comment, [figure, file])
