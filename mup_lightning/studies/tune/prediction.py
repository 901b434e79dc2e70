"""What small models predict for a large one: the base value, its uncertainty, and why it may be wrong."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mup_lightning.errors import UserError
from mup_lightning.studies.fit import student_t
from mup_lightning.studies.transfer.drift import Slope
from mup_lightning.studies.transfer.estimate import Optimum
from mup_lightning.studies.transfer.transfer import Transfer
from mup_lightning.studies.transfer.verdict import TRANSFERS

_OPEN_ENDS = {
    "": frozenset[int](),
    "at least": frozenset({1}),
    "at most": frozenset({-1}),
    "unknown": frozenset({-1, 1}),
}
_SIDES = ("width", "depth")

LARGE_DRIFT = 0.5
"""A drift of more powers of two than this should be looked into before a long run."""


@dataclass(frozen=True)
class Drift:
    """How the best value moved over the proxies along one axis, and where that would lead.

    If several groups grow along the axis, such as the width at two depths, `slope` is the mean of theirs, and its
    interval reaches from the lowest end of theirs to the highest: the target may do as any of them does.

    Attributes:
        axis: width, depth or both.
        slope: powers of two for each doubling.
        low: lower end of its 95 % interval; None: unknown in at least one group.
        high: upper end.
        doublings: from the middle of all proxies, those of the other axes included, to the target.
        open_ends: directions, -1 and +1, in which the slope would move if optima at an edge of the grid lay beyond it.
    """

    axis: str
    slope: float
    low: float | None
    high: float | None
    doublings: float
    open_ends: frozenset[int]

    @property
    def shift(self) -> float:
        """Powers of two, from the proxies to the target, if the drift went on."""
        return self.slope * self.doublings

    @property
    def reach(self) -> tuple[float, float]:
        """How far below and above `shift` its 95 % interval reaches; infinite if that is unknown."""
        if self.low is None or self.high is None:
            return math.inf, math.inf
        low, high = sorted((self.low * self.doublings, self.high * self.doublings))
        return self.shift - low, high - self.shift


@dataclass(frozen=True)
class Prediction:
    """The transferred base value.

    Attributes:
        key: dotted key, such as recipe.lr.
        log2: of the value: the mean over the proxies' optima.
        half_width: half the width of its 95 % interval as the proxies' base value; infinite if that is unknown.
        open_ends: directions, -1 and +1, in which it would move if optima at an edge of their grid lay beyond it.
        drifts: one for each axis.
        caveats: why it may be wrong, in words.
    """

    key: str
    log2: float
    half_width: float
    open_ends: frozenset[int]
    drifts: tuple[Drift, ...]
    caveats: tuple[str, ...]

    @property
    def value(self) -> float:
        """To four digits, as it is written."""
        return float(f"{2**self.log2:.4g}")

    @property
    def at_target(self) -> tuple[float, float]:
        """log2 of the range in which the target's best value is expected, drifts and their uncertainty included."""
        middle = self.log2 + sum(drift.shift for drift in self.drifts)
        below = math.hypot(self.half_width, *(drift.reach[0] for drift in self.drifts))
        above = math.hypot(self.half_width, *(drift.reach[1] for drift in self.drifts))
        return middle - below, middle + above

    @property
    def open_at_target(self) -> frozenset[int]:
        """Directions in which that range would move if optima at an edge of their grid lay beyond it."""
        drifting = [drift for drift in self.drifts if drift.doublings]
        return self.open_ends | {
            round(math.copysign(1, end * drift.doublings)) for drift in drifting for end in drift.open_ends
        }


def predict(groups: Sequence[Transfer], key: str, target: tuple[int, int], caveats: Sequence[str] = ()) -> Prediction:
    """Carry the best value over.

    Under the recipe it is the same at all sizes, so the mean over all proxies is taken. The measured drift is not
    applied: it says how far the recipe may be off at the target. Groups in which fewer than two sizes trained take no
    part in either, but their verdicts are among the caveats.

    Args:
        groups: of the proxies; several may be of one axis.
        key: of the value.
        target: width and depth.
        caveats: further ones.

    Raises:
        UserError: no group has two sizes where something trained.
    """
    useful = [(group, group.slope) for group in groups if group.slope is not None]
    if not useful:
        raise UserError("fewer than two proxies of different size trained; lower the values, or add sizes")
    slopes = [slope for _, slope in useful]
    optima = [best for group, _ in useful for best in group.optima]
    half_width = math.inf
    if all(slope.mean_se is not None for slope in slopes):
        # The axes share the base model, so their errors are not independent: no gain is claimed from there being two.
        # Nor from many curves, which lean to the same side at all sizes.
        errors = [student_t(slope.dof) * (slope.mean_se or 0.0) for slope in slopes]
        shape_se = sum(best.shape_se for best in optima) / len(optima)
        half_width = math.hypot(math.hypot(*errors) / math.sqrt(len(errors)), student_t(math.inf) * shape_se)
    axes = dict.fromkeys(group.axis for group, _ in useful)
    if "both" in axes:  # which adds nothing to a width and a depth
        axes = dict.fromkeys(_SIDES if axes.keys() >= set(_SIDES) else ["both"])
    drifts = tuple(_drift(axis, useful, target) for axis in axes)
    return Prediction(
        key,
        sum(slope.mean for slope in slopes) / len(slopes),
        half_width,
        frozenset(best.edge for best in optima if best.edge),
        drifts,
        (*_caveats(groups, drifts, target), *caveats),
    )


def _drift(axis: str, useful: Sequence[tuple[Transfer, Slope]], target: tuple[int, int]) -> Drift:
    slopes = [slope for group, slope in useful if group.axis == axis]
    lows, highs = [slope.low for slope in slopes], [slope.high for slope in slopes]
    known = [None not in ends for ends in (lows, highs)]
    return Drift(
        axis,
        sum(slope.slope for slope in slopes) / len(slopes),
        min(low for low in lows if low is not None) if all(known) else None,
        max(high for high in highs if high is not None) if all(known) else None,
        _doublings(axis, [group for group, _ in useful], target),
        frozenset().union(*(_OPEN_ENDS[slope.bound] for slope in slopes)),
    )


def _doublings(axis: str, groups: Sequence[Transfer], target: tuple[int, int]) -> float:
    """Doublings from the size whose best value is predicted, if it drifts evenly, to the target.

    The value is the mean over the groups of their mean optima, and on each axis the proxies of the others stand at
    their own fixed size, most often the base: if three widths and three depths are one cross, the value belongs to half
    the way, in width, from the base to the middle of the widths.
    """
    places = []
    for group in groups:
        fixed = group.settings.get(axis, "")
        if group.axis == axis:
            places.append(sum(best.position for best in group.optima) / len(group.optima))
        elif fixed:
            places.append(math.log2(float(fixed)))
    width, depth = (math.log2(side) for side in target)
    return {"width": width, "depth": depth}.get(axis, (width + depth) / 2) - sum(places) / len(places)


def ends(group: Transfer, best: Optimum) -> set[int]:
    """Which ends of the values tried, -1 and +1, are as good as the best one: beyond them may be better ones."""
    tried = next(curve.values for curve in group.curves if curve.size == best.size)
    return {end for end, value in ((-1, tried[0]), (1, tried[-1])) if value in best.plateau}


def _caveats(groups: Sequence[Transfer], drifts: Sequence[Drift], target: tuple[int, int]) -> list[str]:
    """All that the results themselves say against the value, in words."""
    found = []
    for group in groups:
        if not group.verdict.startswith(TRANSFERS):
            alone = sum(other.axis == group.axis for other in groups) == 1
            place = ", ".join(f"{side} {group.settings[side]}" for side in _SIDES if side in group.settings)
            found.append(f"over {group.axis}{f' at {place}' if place and not alone else ''}: {group.verdict}")
        found += _caveats_of_optima(group)
    for drift in drifts:
        if abs(drift.shift) > LARGE_DRIFT:
            found.append(
                f"if the measured drift over {drift.axis} went on, the target's best value would be "
                f"2^{drift.shift:+.1f} times this one; a larger proxy would tell"
            )
    for axis, side in zip(_SIDES, target, strict=True):
        grown = any(len(group.optima) > 1 for group in groups if group.axis in (axis, "both"))
        sizes = sorted({size for group in groups for size in _sizes(group, axis)})
        if not grown and sizes and not sizes[0] <= side <= sizes[-1]:
            found.append(
                f"{axis} was not varied among the proxies that trained ({_listed(sizes)}; the target has {side}): "
                f"nothing tells whether the best value stays where it is as the {axis} grows"
            )
    along = [group for group in groups if group.slope is not None]
    pairs = [best.size.split("x") for group in along if group.axis == "both" for best in group.optima]
    ratios = sorted({float(width) / float(depth) for width, depth in (pair for pair in pairs if len(pair) == 2)})
    own = target[0] / target[1]
    only_both = all(group.axis == "both" for group in along)
    if ratios and only_both and not ratios[0] * (1 - 1e-9) <= own <= ratios[-1] * (1 + 1e-9):
        found.append(
            f"width and depth were varied together only, at {_listed(ratios)} channels a block; "
            f"the target has {own:g}: nothing tells what either does alone"
        )
    return found


def _listed(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)


def _caveats_of_optima(group: Transfer) -> list[str]:
    found = []
    first, last = group.optima[:1], group.optima[1:][-1:]
    if last and last[0].loss >= first[0].loss:
        found.append(
            f"{group.axis} {last[0].size} is no better than {first[0].size} (loss {last[0].loss:.3f} and "
            f"{first[0].loss:.3f}): runs this short mislead, for the best value then drifts; train longer"
        )
    for what, sizes in (
        ("is the last one tried", [best.size for best in group.optima if best.edge]),
        (
            "cannot be told from the last one tried",
            [best.size for best in group.optima if not best.edge and ends(group, best)],
        ),
        ("stands next to one that diverged", [best.size for best in group.optima if best.cliff]),
    ):
        if sizes:
            found.append(f"at {group.axis} {', '.join(sizes)} the best value {what}")
    return found


def _sizes(group: Transfer, axis: str) -> list[float]:
    """The widths, or depths, of a group's models that trained, as far as the table tells."""
    if group.axis == axis:
        return [round(2**best.position, 6) for best in group.optima]
    fixed = group.settings.get(axis, "")
    return [float(fixed)] if fixed and group.optima else []
