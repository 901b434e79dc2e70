"""What small models say of a large one's base value: the value, how sure it is, and why it may be wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from mup_lightning.errors import UserError
from mup_lightning.studies.fit import student_t
from mup_lightning.studies.transfer.drift import Slope
from mup_lightning.studies.transfer.transfer import Transfer
from mup_lightning.studies.tune.transfer_tuned_doubts import doubts

_TURNS = {"": set(), "at least": {1}, "at most": {-1}, "unknown": {-1, 1}}


@dataclass(frozen=True)
class Drift:
    """How the best value moved over the proxies along one axis, and where that would lead.

    Where several groups grow along the axis, such as the width at two depths, `slope` is the mean of theirs, and its
    interval reaches from the lowest end of theirs to the highest: the target may do as any of them does. So neither the
    drift nor its certainty grows with the number of groups.

    Attributes:
        axis: width, depth or both.
        slope: powers of two for each doubling.
        low: lower end of its 95 % interval; None: unknown, of one group at least.
        high: upper end.
        doublings: from the middle of all proxies, those of the other axes included, to the target.
        turns: ways, -1 and +1, in which the slope would turn if the optima at an edge of their grid lay beyond it.
    """

    axis: str
    slope: float
    low: float | None
    high: float | None
    doublings: float
    turns: frozenset[int] = field(default_factory=frozenset)

    @property
    def moved(self) -> float:
        """Powers of two, from the proxies to the target, if it went on as it began."""
        return self.slope * self.doublings

    @property
    def reach(self) -> tuple[float, float]:
        """How far below and above that its interval goes; infinite where it is unknown."""
        if self.low is None or self.high is None:
            return math.inf, math.inf
        ends = sorted((self.low * self.doublings, self.high * self.doublings))
        return self.moved - ends[0], ends[1] - self.moved


@dataclass(frozen=True)
class Tuned:
    """The transferred base value.

    Attributes:
        key: dotted key, such as recipe.lr.
        log2: of the value: the mean over the proxies' optima.
        half: half of its 95 % interval as the proxies' base value; infinite where nothing tells.
        turns: ways, -1 and +1, in which the value would move if the optima at an edge of their grid lay beyond it.
        drifts: one for each axis.
        warnings: why it may be wrong, in words.
    """

    key: str
    log2: float
    half: float
    turns: frozenset[int]
    drifts: tuple[Drift, ...]
    warnings: tuple[str, ...]

    @property
    def value(self) -> float:
        """To four digits, as it is written."""
        return float(f"{2**self.log2:.4g}")

    @property
    def outer(self) -> tuple[float, float]:
        """log2 of the range in which the target's best value is expected, drifts and all their uncertainty included."""
        middle = self.log2 + sum(d.moved for d in self.drifts)
        below = math.hypot(self.half, *(d.reach[0] for d in self.drifts))
        above = math.hypot(self.half, *(d.reach[1] for d in self.drifts))
        return middle - below, middle + above

    @property
    def outer_turns(self) -> frozenset[int]:
        """Ways in which that range would move if the optima at an edge of their grid lay beyond it."""
        signs = {round(math.copysign(turn, turn * d.doublings)) for d in self.drifts if d.doublings for turn in d.turns}
        return self.turns | signs


def tuned(findings: Sequence[Transfer], key: str, target: tuple[int, int], cautions: Sequence[str] = ()) -> Tuned:
    """Carry the best value over.

    Under the recipe it is the same at all sizes, so the mean over all proxies is taken. The measured drift is not
    applied: it says how far the recipe may be off at the target. Groups in which fewer than two sizes trained have no
    part in either, but their verdicts are among the warnings.

    Args:
        findings: of the proxies; several may be of one axis.
        key: of the value.
        target: width and depth.
        cautions: further reasons to doubt.

    Raises:
        UserError: no axis has two sizes where something trained.
    """
    useful = [(finding, finding.slope) for finding in findings if finding.slope is not None]
    if not useful:
        raise UserError("fewer than two proxies of different size trained; lower the values, or add sizes")
    slopes = [slope for _, slope in useful]
    log2 = sum(slope.mean for slope in slopes) / len(slopes)
    # The axes share the base model, so their errors are not independent: no gain is claimed from there being two.
    errors = [slope.mean_se for slope in slopes if slope.mean_se is not None]
    half = math.inf
    if len(errors) == len(slopes):
        half = math.sqrt(sum((student_t(s.dof) * (s.mean_se or 0.0)) ** 2 for s in slopes) / len(slopes))
        # Curves of all sizes lean to one side: more of them make it no better.
        shapes = [o.shape_se for finding, _ in useful for o in finding.optima]
        half = math.hypot(half, student_t(math.inf) * sum(shapes) / len(shapes))
    turns = frozenset(o.edge for finding, _ in useful for o in finding.optima if o.edge)
    drifts = tuple(_drift(axis, useful, target) for axis in _axes([finding for finding, _ in useful]))
    said = doubts(findings, {drift.axis: drift.moved for drift in drifts}, target)
    return Tuned(key, log2, half, turns, drifts, (*said, *cautions))


def _axes(findings: Sequence[Transfer]) -> list[str]:
    """Axes whose drifts add up to that of the target: what grows with both is no third one beside width and depth."""
    found = list(dict.fromkeys(finding.axis for finding in findings))
    if "both" not in found or len(found) == 1:
        return found
    return [axis for axis in found if axis != "both"] if {"width", "depth"} <= set(found) else ["both"]


def _drift(axis: str, useful: Sequence[tuple[Transfer, Slope]], target: tuple[int, int]) -> Drift:
    slopes = [slope for finding, slope in useful if finding.axis == axis]
    lows = [slope.low for slope in slopes if slope.low is not None]
    highs = [slope.high for slope in slopes if slope.high is not None]
    known = len(lows) == len(highs) == len(slopes)
    return Drift(
        axis,
        sum(slope.slope for slope in slopes) / len(slopes),
        min(lows) if known else None,
        max(highs) if known else None,
        _doublings(axis, [finding for finding, _ in useful], target),
        frozenset().union(*(_TURNS[slope.bound] for slope in slopes)),
    )


def _doublings(axis: str, findings: Sequence[Transfer], target: tuple[int, int]) -> float:
    """From the size that the value is the best one of, if it drifts evenly, to the target.

    The value is the mean over the findings of their mean optima, and on each axis the proxies of the others stand at
    their own fixed size, most often the base: where three widths and three depths are one cross, the value belongs
    to half the way, in width, from the base to the middle of the widths.
    """
    places = []
    for finding in findings:
        fixed = finding.settings.get(axis, "")
        if finding.axis == axis:
            places.append(sum(o.position for o in finding.optima) / len(finding.optima))
        elif fixed:
            places.append(math.log2(float(fixed)))
    width, depth = (math.log2(side) for side in target)
    return {"width": width, "depth": depth}.get(axis, (width + depth) / 2) - sum(places) / len(places)
