"""`mup-lightning tune`: finds a base value of a large model on small ones, and writes the large one's configuration.

Under the recipe the best value is the same at all sizes, so the small models' mean is taken. How it drifts over them
says how far the recipe may be off at the target, and is not applied.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mup_lightning.config.schema import Config
from mup_lightning.errors import UserError
from mup_lightning.files import check_folder
from mup_lightning.studies.scaling import student_t
from mup_lightning.studies.sweep.grid import look_up
from mup_lightning.studies.sweep.run import dry_run, run_all_trials
from mup_lightning.studies.sweep.spec import load
from mup_lightning.studies.transfer.estimate import Slope
from mup_lightning.studies.transfer.figures import draw
from mup_lightning.studies.transfer.losses import read_losses
from mup_lightning.studies.transfer.report import text
from mup_lightning.studies.transfer.verdict import TRANSFERS, Group, transfer
from mup_lightning.studies.tune import FURTHER, ROUNDS, SWEEP, TuneSettings, law, proxies
from mup_lightning.tables import interval, signed

AROUND = 3  # powers of two on either side of the target's value that are tried if the sweep file names no values
LARGE_DRIFT = 0.5  # a drift of more powers of two than this should be looked into before a long run
Interval = tuple[float, float, float]  # an estimate, and the ends of its 95 % interval; infinite where they are unknown


def run(settings: TuneSettings, target: Config) -> int:
    """Find a base value for a target, and write it down. Returns 1 if a configuration has no result, 130 on Ctrl-C."""
    if target.run.resume is not None:
        raise UserError("run.resume is set, but tune trains small models, and continues with them by itself")
    folder = settings.out or Path("runs") / "tune" / target.run.name
    check_folder(folder)
    if settings.law:
        return law.run(settings, target, folder)
    if settings.results:
        runs, small, key, place = proxies.results_of(settings.results, target)
        _refuse_time(set(runs["axis"]), str(place))
        return _conclude(transfer(runs), list(small.values()), key, target, folder, place)
    sweep = load(settings.sweep or SWEEP, settings.set, tuning=True)
    _refuse_time({grid.size for grid in sweep.grids}, sweep.file)
    below, above, known = AROUND, AROUND, 0
    if settings.dry_run:
        trials = proxies.proxy_trials(sweep, target, below, above)
        print(dry_run(trials, folder, settings.workers))
        if not proxies.names_values(sweep):
            print(f"more values if the best is the first or last of them, at most {ROUNDS - 1} times")
        print(proxies.cost_of(target, sum(trial.checked.flops for trial in trials)))
        if differing := proxies.not_transferred([trial.config for trial in trials], target):
            print(f"not transferred by the recipe: {'; '.join(differing)}")
        return 0
    for _ in range(ROUNDS):
        trials = proxies.proxy_trials(sweep, target, below, above)
        if len(trials) == known:  # the grid cannot grow any more
            break
        known = len(trials)
        if code := run_all_trials(trials, folder, settings.workers, sweep.keep_runs):
            return code
        groups = groups_of(folder, sweep.value, {trial.hash for trial in trials})
        reached = {end for group in groups for best in group.optima for end in best.ends}
        if proxies.names_values(sweep) or not reached:
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


def _conclude(
    groups: list[Group], small: Sequence[Config], key: str, target: Config, folder: Path, source: Path
) -> int:
    """Print what was found, draw it, and write the target's configuration with the value."""
    base, more = proxies.caveats(small, target, source)
    shape = (target.model.width, target.model.depth)
    result = predict(groups, key, shape, more)
    own = (target.recipe.base_width, target.recipe.base_depth)
    said = result.text(base, shape, look_up(target, key) if base == own else None)
    print(f"\n{text(groups)}\n\n{said}")
    counted = f"{len(small)} runs of {groups[0].steps} steps, seeds: {max(group.seeds for group in groups)}"
    comment = [f"Tuned on small models, for {shape}. {counted}: {source / 'results.csv'}", *said.splitlines()]
    # A file for each value, so that the weight decay's does not replace the learning rate's.
    file = folder / ("tuned.yaml" if key == "recipe.lr" else f"tuned_{key.rpartition('.')[2]}.yaml")
    found = {key: result.value, "recipe.base_width": base[0], "recipe.base_depth": base[1]}
    return proxies.write_target(file, target, found, comment, draw(groups, folder))


@dataclass(frozen=True)
class Drift:
    """How the best value moved over the proxies along one axis, in powers of two for each doubling.

    Of several groups, such as the width at two depths, `slope` is the mean, and its interval reaches from their lowest
    end to their highest: the target may do as any does. `doublings` are from the middle of all proxies to the target.
    """

    axis: str
    slope: Interval
    doublings: float

    @property
    def shift(self) -> Interval:
        """Powers of two, from the proxies to the target, if the drift went on."""
        middle, *ends = (side * self.doublings if self.doublings else 0.0 for side in self.slope)
        return middle, min(ends), max(ends)


@dataclass(frozen=True)
class Prediction:
    """The transferred base value of a dotted key."""

    key: str
    log2: float  # of the value: the mean over the proxies' optima
    half_width: float  # half the width of its 95 % interval as the proxies' base value; infinite if that is unknown
    edge: bool  # an optimum is the last value tried, and may lie beyond
    drifts: list[Drift]
    caveats: list[str]  # why it may be wrong, in words

    @property
    def value(self) -> float:
        """To four digits, as it is written."""
        return float(f"{2**self.log2:.4g}")

    @property
    def at_target(self) -> tuple[float, float]:
        """log2 of the range in which the target's best value is expected, drifts and their uncertainty included."""
        shifts = [drift.shift for drift in self.drifts]
        below = math.hypot(self.half_width, *(shift - low for shift, low, _ in shifts))
        above = math.hypot(self.half_width, *(high - shift for shift, _, high in shifts))
        middle = self.log2 + sum(shift for shift, _, _ in shifts)
        return middle - below, middle + above

    def text(self, base: tuple[int, int], target: tuple[int, int], own: float | None = None) -> str:
        """The value, its uncertainty, and what speaks against it; shapes are (width, depth).

        `own` is the value that the target has now, at the same base shape; None: unknown.
        """
        low, high = self.log2 - self.half_width, self.log2 + self.half_width
        lines = [
            f"{self.key} {self.value:g} (2^{self.log2:.2f}) at base shape {base}",
            f"  at the proxies      best {self._range(low, high)} (95 %)",
        ]
        for drift in self.drifts:
            known = math.isfinite(drift.slope[1])
            slope, shift = (interval(*own) if known else signed(own[0]) for own in (drift.slope, drift.shift))
            to_target = f"{drift.doublings:.1f} doublings to the target: {shift}"
            lines.append(f"  drift over {drift.axis:<8} {slope} powers of two for each doubling; {to_target}")
        lines.append(f"  at {target!s:<16} best {self._range(*self.at_target)}, had the drift gone on so far")
        if own and own > 0 and not self.edge and math.isfinite(self.half_width):
            inside = low <= math.log2(own) <= high
            verdict = "inside that range: as good, for all these runs can tell" if inside else "outside that range"
            lines.append(f"  the target has now  2^{math.log2(own):.2f}, {verdict}")
        return "\n".join([*lines, *(f"warning: {caveat}" for caveat in self.caveats)])

    def _range(self, low: float, high: float) -> str:
        if self.edge:
            return "unknown: at some sizes the best value is the last one tried, so widen the grid"
        return f"between 2^{low:.2f} and 2^{high:.2f}" if math.isfinite(low) else "unknown: more seeds or sizes"


def predict(groups: Sequence[Group], key: str, target: tuple[int, int], caveats: Sequence[str] = ()) -> Prediction:
    """Carry the best value over to the target, (width, depth), from groups in which two sizes trained.

    The verdicts of the others are among the caveats. Raises UserError where there is no such group.
    """
    useful = [(group, group.slope) for group in groups if group.slope is not None]
    if not useful:
        raise UserError("fewer than two proxies of different size trained; lower the values, or add sizes")
    slopes = [slope for _, slope in useful]
    optima = [best for group, _ in useful for best in group.optima]
    # The axes share the base model, so their errors are not independent: no gain is claimed from there being two.
    # Nor from many curves, which lean to the same side at all sizes.
    errors = [student_t(slope.dof) * slope.mean_se for slope in slopes]
    shape_se = sum(best.shape_se for best in optima) / len(optima)
    axes = dict.fromkeys(group.axis for group, _ in useful)
    if "both" in axes:  # which adds nothing to a width and a depth
        axes = dict.fromkeys(("width", "depth") if {"width", "depth"} <= axes.keys() else ["both"])
    drifts = [_drift(axis, useful, target) for axis in axes]
    log2 = sum(slope.mean for slope in slopes) / len(slopes)
    half_width = math.hypot(math.hypot(*errors) / math.sqrt(len(errors)), student_t(math.inf) * shape_se)
    found = [*_caveats(groups, drifts, target), *caveats]
    return Prediction(key, log2, half_width, any(best.edge for best in optima), drifts, found)


def _drift(axis: str, useful: Sequence[tuple[Group, Slope]], target: tuple[int, int]) -> Drift:
    """The drift along an axis, counted from the size whose best value is predicted, if it drifts evenly.

    That is the mean over the groups: if three widths and three depths are one cross, half the way, in width, from the
    base to the middle of the widths.
    """
    slopes = [slope for group, slope in useful if group.axis == axis]
    low, high = min(slope.low for slope in slopes), max(slope.high for slope in slopes)
    places = []
    for group, _ in useful:
        if group.axis == axis:
            places.append(sum(best.position for best in group.optima) / len(group.optima))
        elif fixed := group.settings.get(axis):
            places.append(math.log2(float(fixed)))
    width, depth = (math.log2(side) for side in target)
    place = {"width": width, "depth": depth}.get(axis, (width + depth) / 2)
    mean = sum(slope.slope for slope in slopes) / len(slopes)
    return Drift(axis, (mean, low, high), place - sum(places) / len(places))


def _caveats(groups: Sequence[Group], drifts: Sequence[Drift], target: tuple[int, int]) -> list[str]:
    found = []
    for group in groups:
        if not group.verdict.startswith(TRANSFERS):
            place = ", ".join(f"{side} {group.settings[side]}" for side in ("width", "depth") if side in group.settings)
            found.append(f"over {group.axis}{f' at {place}' if place else ''}: {group.verdict}")
        if len(group.optima) > 1 and group.optima[-1].loss >= group.optima[0].loss:
            sizes = f"{group.axis} {group.optima[-1].size} is no better than {group.optima[0].size}"
            found.append(f"{sizes}: runs this short mislead, for the best value then drifts; train longer")
        for what, where in (
            ("is the last one tried, or cannot be told from it", [o.size for o in group.optima if o.ends]),
            ("stands next to one that diverged", [o.size for o in group.optima if o.cliff]),
        ):
            found += [f"at {group.axis} {', '.join(where)} the best value {what}"] if where else []
    for drift in drifts:
        if abs(drift.shift[0]) > LARGE_DRIFT:
            led = f"the target's best value would be 2^{drift.shift[0]:+.1f} times this one; a larger proxy would tell"
            found.append(f"if the measured drift over {drift.axis} went on, {led}")
    for axis, side in zip(("width", "depth"), target, strict=True):
        varied = any(len(group.optima) > 1 for group in groups if group.axis in (axis, "both"))
        shapes = {float(group.settings[axis]) for group in groups if group.optima and group.settings.get(axis)}
        shapes |= {round(2**best.position, 6) for group in groups if group.axis == axis for best in group.optima}
        if not varied and shapes and not min(shapes) <= side <= max(shapes):
            listed = f"({', '.join(f'{shape:g}' for shape in sorted(shapes))}; the target has {side})"
            unknown = f"nothing tells whether the best value stays where it is as the {axis} grows"
            found.append(f"{axis} was not varied among the proxies that trained {listed}: {unknown}")
    return found
