"""How the optimum moves with the size, and what it costs to tune at the smallest."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mup_lightning.studies.fit import student_t
from mup_lightning.studies.transfer.estimate import Curve, Noise, Optimum


@dataclass(frozen=True)
class Slope:
    """Slope of the log2 optimum against log2 size.

    Attributes:
        slope: powers of two of the value per doubling of the size, by ordinary least squares.
        low: lower end of its 95 % interval; None where it is unknown (two sizes of one seed).
        high: upper end.
        mean: mean of the optima, where the line passes at the mean log2 size.
        mean_se: standard error of `mean`; None as `low`.
        dof: degrees of freedom of the interval.
        bound: "at most" or "at least" where optima lie at an edge of the grid, so that the true slope is below or above
            this one; "unknown" where some would turn it up and some down; else empty.
    """

    slope: float
    low: float | None
    high: float | None
    mean: float
    mean_se: float | None
    dof: float
    bound: str


def slope_of(optima: Sequence[Optimum], noise: Noise) -> Slope:
    """Fit a line to the optima of two sizes or more.

    An optimum misses the line by its own error, known from the seeds, and by a misfit common to all (true curvature,
    loss curves that are not parabolas), whose variance is what the residuals leave beyond the known errors, at least 0.
    The slope's error has both parts, and the degrees of freedom of both (Welch and Satterthwaite). With one seed the
    noise is unknown: the interval is that of a plain regression, or wider where optima lie at an edge.
    """
    count, left = len(optima), len(optima) - 2
    y = np.array([o.value for o in optima])
    x = np.array([o.position for o in optima])
    x = x - x.mean()
    known = np.array([o.se**2 for o in optima])
    spread = float(x @ x)
    slope, mean = float(x @ y) / spread, float(y.mean())
    # An optimum at an edge moves the slope in the edge's direction, times the sign of its size's offset from the mean.
    turns = {math.copysign(1.0, xi) * o.edge for xi, o in zip(x, optima, strict=True) if o.edge and xi}
    bound = {(): "", (-1.0,): "at most", (1.0,): "at least"}.get(tuple(turns), "unknown")
    if not left and (noise.residual is None or not known.all()):
        return Slope(slope, None, None, mean, None, 0.0, bound)
    squares = float(((y - mean - slope * x) ** 2).sum())
    misfit = max(0.0, squares - float((1 - 1 / count - x * x / spread) @ known)) / left if left else 0.0
    variances = float((x / spread) ** 2 @ known), misfit / spread
    per_dof = variances[0] ** 2 / noise.dof + (variances[1] ** 2 / left if left else 0.0)
    dof = max(1.0, sum(variances) ** 2 / per_dof) if per_dof else math.inf
    half = student_t(dof) * math.sqrt(sum(variances))
    mean_se = math.sqrt(float(known.sum()) / count**2 + misfit / count)
    if noise.residual is None:
        mean_se = max(mean_se, math.sqrt(squares / left / count))
        half, dof = max((half, dof), (student_t(left) * math.sqrt(squares / left / spread), float(left)))
    return Slope(slope, slope - half, slope + half, mean, mean_se, dof, bound)


@dataclass(frozen=True)
class Regret:
    """Cost at one size of a value tuned at the smallest size, on the grid.

    Attributes:
        size: the size as written in the table.
        value: log2 of the tuned value; NaN where nothing trained at the smallest size.
        nats: mean loss with that value minus the lowest mean loss; None where there is none.
        why: reason that there is none: "diverged", "stopped", "missing" (not run) or "untuned" (nothing trained at the
            smallest size); else empty.
        ci_half_width: half the width of the 95 % interval of `nats`; 0 where the noise is unknown.
        at_least: the best value of this size is the last one tried, so the regret may be larger.
        ties: the regrets of values that tie with the tuned one at the smallest size and trained here.
    """

    size: str
    value: float
    nats: float | None = None
    why: str = ""
    ci_half_width: float = 0.0
    at_least: bool = False
    ties: tuple["Regret", ...] = ()

    @property
    def infinite(self) -> bool:
        """Whether the tuned value fails outright."""
        return self.why in ("diverged", "stopped")


def regret(curve: Curve, smallest: Optimum | None, own: Optimum | None, dof: float) -> Regret:
    """The regret of one size.

    Args:
        curve: its losses.
        smallest: the optimum of the smallest size; None: nothing trained there.
        own: the optimum of this size; None: nothing trained here.
        dof: degrees of freedom of the noise.
    """
    if smallest is None:
        return Regret(curve.size, math.nan, why="untuned")
    costs, means = {}, curve.trained
    for value in smallest.plateau:
        if own is not None and value in means:
            half = student_t(dof) * curve.difference_se(value, own.best_value)
            costs[value] = Regret(curve.size, value, means[value] - own.loss, "", half, own.edge != 0)
    lost = Regret(curve.size, smallest.best_value, why=curve.lost.get(smallest.best_value, "missing"))
    tuned = costs.pop(smallest.best_value, lost)
    return replace(tuned, ties=tuple(costs.values()))
