"""What small models predict for a large one: the base value, its uncertainty, and why it may be wrong."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mup_lightning.errors import UserError
from mup_lightning.studies.scaling import student_t
from mup_lightning.studies.transfer.estimate import Slope
from mup_lightning.studies.transfer.verdict import TRANSFERS, Group
from mup_lightning.tables import interval, signed

LARGE_DRIFT = 0.5
"""A drift of more powers of two than this should be looked into before a long run."""

Interval = tuple[float, float, float]
"""An estimate, and the ends of its 95 % interval; infinite where they are unknown."""


@dataclass(frozen=True)
class Drift:
    """How the best value moved over the proxies along one axis, and where that would lead.

    If several groups grow along the axis, such as the width at two depths, `slope` is the mean of theirs, and its
    interval reaches from the lowest end of theirs to the highest: the target may do as any of them does.

    Attributes:
        slope: powers of two for each doubling.
        doublings: from the middle of all proxies, those of the other axes included, to the target.
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
    """The transferred base value of a dotted key.

    Attributes:
        log2: of the value: the mean over the proxies' optima.
        half_width: half the width of its 95 % interval as the proxies' base value; infinite if that is unknown.
        edge: an optimum is the last value tried, and may lie beyond.
        caveats: why it may be wrong, in words.
    """

    key: str
    log2: float
    half_width: float
    edge: bool
    drifts: list[Drift]
    caveats: list[str]

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
    """Carry the best value over.

    Under the recipe it is the same at all sizes, so the mean over all proxies is taken. The measured drift is not
    applied: it says how far the recipe may be off at the target, (width, depth). Groups in which fewer than two sizes
    trained take no part in either, but their verdicts are among the caveats. Raises UserError where all are like that.
    """
    useful = [(group, group.slope) for group in groups if group.slope is not None]
    if not useful:
        raise UserError("fewer than two proxies of different size trained; lower the values, or add sizes")
    slopes = [slope for _, slope in useful]
    optima = [best for group, _ in useful for best in group.optima]
    # The axes share the base model, so their errors are not independent: no gain is claimed from there being two.
    # Nor from many curves, which lean to the same side at all sizes.
    errors = [student_t(slope.dof) * slope.mean_se if slope.mean_se is not None else math.inf for slope in slopes]
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
    """The drift along an axis. Doublings are counted from the size whose best value is predicted, if it drifts evenly.

    The value is the mean over the groups of their mean optima, and on each axis the proxies of the others stand at
    their own fixed size: if three widths and three depths are one cross, the value belongs to half the way, in width,
    from the base to the middle of the widths.
    """
    slopes = [slope for group, slope in useful if group.axis == axis]
    low = min(-math.inf if slope.low is None else slope.low for slope in slopes)
    high = max(math.inf if slope.high is None else slope.high for slope in slopes)
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
    """All that the results themselves say against the value, in words."""
    found = []
    for group in groups:
        if not group.verdict.startswith(TRANSFERS):
            place = ", ".join(f"{side} {group.settings[side]}" for side in ("width", "depth") if side in group.settings)
            found.append(f"over {group.axis}{f' at {place}' if place else ''}: {group.verdict}")
        if len(group.optima) > 1 and group.optima[-1].loss >= group.optima[0].loss:
            sizes = f"{group.axis} {group.optima[-1].size} is no better than {group.optima[0].size}"
            found.append(f"{sizes}: runs this short mislead, for the best value then drifts; train longer")
        for what, where in {
            "is the last one tried, or cannot be told from it": [o.size for o in group.optima if o.ends],
            "stands next to one that diverged": [o.size for o in group.optima if o.cliff],
        }.items():
            if where:
                found.append(f"at {group.axis} {', '.join(where)} the best value {what}")
    for drift in drifts:
        if abs(drift.shift[0]) > LARGE_DRIFT:
            led = f"the target's best value would be 2^{drift.shift[0]:+.1f} times this one; a larger proxy would tell"
            found.append(f"if the measured drift over {drift.axis} went on, {led}")
    for axis, side in zip(("width", "depth"), target, strict=True):
        if any(len(group.optima) > 1 for group in groups if group.axis in (axis, "both")):
            continue
        trained = [group for group in groups if group.optima]
        shapes = {float(group.settings[axis]) for group in trained if group.settings.get(axis)}
        shapes |= {round(2**best.position, 6) for group in trained if group.axis == axis for best in group.optima}
        if shapes and not min(shapes) <= side <= max(shapes):
            listed = f"({', '.join(f'{shape:g}' for shape in sorted(shapes))}; the target has {side})"
            unknown = f"nothing tells whether the best value stays where it is as the {axis} grows"
            found.append(f"{axis} was not varied among the proxies that trained {listed}: {unknown}")
    return found
