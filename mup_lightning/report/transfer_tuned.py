"""What small models say of a large one's base value: the value, how sure it is, and why it may be wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mup_lightning.errors import UserError
from mup_lightning.report.transfer import Finding
from mup_lightning.report.transfer_verdict import TRANSFERS
from mup_lightning.student import student_t

_HALF_A_POWER = 0.5
"""A drift of more than half a power of two would better be looked into before a long run."""


@dataclass(frozen=True)
class Drift:
    """How the best value moved over the proxies, and where that would lead.

    Attributes:
        axis: width, depth or both.
        slope: powers of two for each doubling.
        low: lower end of its 95 % interval; None: unknown.
        high: upper end.
        doublings: from the middle of all proxies, those of the other axes included, to the target.
    """

    axis: str
    slope: float
    low: float | None
    high: float | None
    doublings: float

    @property
    def moved(self) -> float:
        """Powers of two, from the proxies to the target, if it went on as it began."""
        return self.slope * self.doublings

    @property
    def half(self) -> float:
        """Half the interval of that; infinite where it is unknown."""
        if self.low is None or self.high is None:
            return math.inf
        return abs(self.doublings) * (self.high - self.low) / 2


@dataclass(frozen=True)
class Tuned:
    """The transferred base value.

    Attributes:
        key: dotted key, such as recipe.lr.
        log2: of the value: the mean over the proxies' optima.
        half: half of its 95 % interval as the proxies' base value; infinite where nothing tells.
        drifts: one for each axis.
        warnings: why it may be wrong, in words.
    """

    key: str
    log2: float
    half: float
    drifts: tuple[Drift, ...]
    warnings: tuple[str, ...]

    @property
    def value(self) -> float:
        """To four digits, as it is written."""
        return float(f"{2**self.log2:.4g}")

    @property
    def outer(self) -> tuple[float, float]:
        """log2 of the range in which the target's best value is expected, drifts and all their uncertainty included."""
        moved, half = sum(d.moved for d in self.drifts), math.hypot(self.half, *(d.half for d in self.drifts))
        return self.log2 + moved - half, self.log2 + moved + half


def tuned(findings: Sequence[Finding], key: str, target: tuple[int, int], cautions: Sequence[str] = ()) -> Tuned:
    """Carry the best value over.

    Under the recipe it is the same at all sizes, so the mean over all proxies is taken. The measured drift is not
    applied: it says how far the recipe may be off at the target.

    Args:
        findings: of the proxies, one for each axis.
        key: of the value.
        target: width and depth.
        cautions: further reasons to doubt.

    Raises:
        UserError: no axis has two sizes where something trained.
    """
    useful = [finding for finding in findings if finding.slope is not None]
    if not useful:
        raise UserError("fewer than two proxies of different size trained; lower the values, or add sizes")
    slopes = [finding.slope for finding in useful if finding.slope is not None]
    log2 = sum(slope.at for slope in slopes) / len(slopes)
    # The axes share the base model, so their errors are not independent: no gain is claimed from there being two.
    errors = [slope.error for slope in slopes if slope.error is not None]
    half = math.inf
    if len(errors) == len(slopes):
        half = math.sqrt(sum((student_t(s.freedom) * (s.error or 0.0)) ** 2 for s in slopes) / len(slopes))
    middle = _middle(useful)
    drifts = tuple(_drift(finding, target, middle) for finding in useful)
    return Tuned(key, log2, half, drifts, (*_warnings(useful, drifts), *cautions))


def _middle(findings: Sequence[Finding]) -> dict[str, float]:
    """Axis -> log2 of the size that the value is the best one of, if it drifts evenly.

    The value is the mean over the findings of their mean optima, and on each axis the proxies of the others stand at
    their own fixed size, most often the base: where three widths and three depths are one cross, the value belongs
    to half the way, in width, from the base to the middle of the widths.
    """
    found: dict[str, float] = {}
    for axis in {finding.group.axis for finding in findings}:
        places = []
        for finding in findings:
            fixed = finding.group.settings.get(axis, "")
            if finding.group.axis == axis:
                places.append(sum(o.position for o in finding.optima) / len(finding.optima))
            elif fixed:
                places.append(math.log2(float(fixed)))
        found[axis] = sum(places) / len(places)
    return found


def _drift(finding: Finding, target: tuple[int, int], middle: dict[str, float]) -> Drift:
    slope, axis = finding.slope, finding.group.axis
    assert slope is not None
    width, depth = (math.log2(side) for side in target)
    place = {"width": width, "depth": depth}.get(axis, (width + depth) / 2)
    return Drift(axis, slope.slope, slope.low, slope.high, place - middle[axis])


def _warnings(findings: Sequence[Finding], drifts: Sequence[Drift]) -> list[str]:
    found = []
    for finding in findings:
        if not finding.verdict.startswith(TRANSFERS):
            found.append(f"over {finding.group.axis}: {finding.verdict}")
        first, last = finding.optima[0], finding.optima[-1]
        if last.loss >= first.loss:
            found.append(
                f"{finding.group.axis} {last.size} is no better than {first.size} (loss {last.loss:.3f} and "
                f"{first.loss:.3f}): runs this short mislead, for the best value then drifts; train longer"
            )
        for what, sizes in (
            ("is the last one tried", [o.size for o in finding.optima if o.edge]),
            ("stands next to one that diverged", [o.size for o in finding.optima if o.cliff]),
        ):
            if sizes:
                found.append(f"at {finding.group.axis} {', '.join(sizes)} the best value {what}")
    for drift in drifts:
        if abs(drift.moved) > _HALF_A_POWER:
            found.append(
                f"if the measured drift over {drift.axis} went on, the target's best value would be "
                f"2^{drift.moved:+.1f} times this one; a larger proxy would tell"
            )
    return found
