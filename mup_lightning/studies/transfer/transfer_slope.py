"""How fast the best value moves with the size: a straight line, and how sure its slope is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mup_lightning.studies.fit import student_t
from mup_lightning.studies.transfer.estimate import Noise
from mup_lightning.studies.transfer.transfer_optimum import Optimum


@dataclass(frozen=True)
class Slope:
    """Of log2 of the best value against log2 of the size.

    Attributes:
        slope: powers of two of the value for each doubling of the size, by ordinary least squares.
        low: lower end of its 95 % interval; None where nothing tells how sure it is: two sizes of one seed.
        high: upper end.
        at: where the line passes, at the mean of the log2 sizes: the mean of the optima.
        error: standard error of `at`; None as `low`.
        freedom: degrees of freedom of the interval.
        bound: "at most" or "at least": what the slope says where optima lie at an edge of the grid, since their true
            places lie beyond; "unknown": some would turn it up and some down. Empty: no optimum lies at an edge.
    """

    slope: float
    low: float | None
    high: float | None
    at: float
    error: float | None
    freedom: float
    bound: str


def slope_of(optima: Sequence[Optimum], noise: Noise) -> Slope:
    """Fit the line.

    An optimum misses the line by its own error, known from the seeds, and by a misfit that all optima share: true
    curvature, and parabolas that are not quite the curves. The misfit's variance is what the residuals leave when the
    known errors are taken off, at least 0. The slope's error has both parts, and its t distribution the degrees of
    freedom of both (Welch and Satterthwaite). With one seed the noise is unknown, and the error of an optimum at an
    edge is a guess: the interval is that of a plain regression, or wider by that guess.

    Args:
        optima: of two sizes or more.
        noise: that their errors come from.
    """
    count = len(optima)
    middle = sum(o.position for o in optima) / count
    at = sum(o.value for o in optima) / count
    x = [o.position - middle for o in optima]
    spread = sum(xi * xi for xi in x)
    slope = sum(xi * o.value for xi, o in zip(x, optima, strict=True)) / spread
    residuals = sum((o.value - at - slope * xi) ** 2 for xi, o in zip(x, optima, strict=True))
    known = [o.error**2 for o in optima]
    of_slope = sum((xi / spread) ** 2 * v for xi, v in zip(x, known, strict=True))
    of_mean = sum(known) / count**2
    left = count - 2
    bound = _bound(x, optima)
    seen = noise.paired is not None
    if not left and not (seen and all(known)):
        return Slope(slope, None, None, at, None, 0.0, bound)
    misfit = 0.0
    if left:
        expected = sum((1 - 1 / count - xi * xi / spread) * v for xi, v in zip(x, known, strict=True))
        misfit = max(0.0, residuals - expected) / left
    total = of_slope + misfit / spread
    both = of_slope**2 / noise.freedom + ((misfit / spread) ** 2 / left if left else 0.0)
    combined = max(1.0, total**2 / both) if both else math.inf
    half, error = student_t(combined) * math.sqrt(total), math.sqrt(of_mean + misfit / count)
    plain = math.sqrt(residuals / left / spread) if left else 0.0
    if not seen:
        error = max(error, math.sqrt(residuals / left / count))
        if student_t(left) * plain >= half:
            half, combined = student_t(left) * plain, float(left)
    return Slope(slope, slope - half, slope + half, at, error, combined, bound)


def _bound(x: Sequence[float], optima: Sequence[Optimum]) -> str:
    """Which way the slope would turn if optima at an edge moved beyond it."""
    turns = {math.copysign(1.0, xi) * o.edge for xi, o in zip(x, optima, strict=True) if o.edge and xi}
    if not turns:  # none at an edge, or only the middle one, which turns nothing
        return ""
    return "at most" if turns == {-1.0} else "at least" if turns == {1.0} else "unknown"
