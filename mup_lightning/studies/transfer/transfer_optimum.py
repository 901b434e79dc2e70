"""The best base value of one size, and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mup_lightning.studies.fit import student_t
from mup_lightning.studies.transfer.estimate import Noise
from mup_lightning.studies.transfer.transfer_curves import Curve

_MISFIT = 0.25
"""A loss that is h nats above the best one is trusted to this part of h only: curves are parabolas at the bottom."""

_SHAPE = 0.15
"""Standard error, in steps of the grid, of the parabola's bottom: nobody knows the curve between the values tried.

Curves are steeper on the side of divergence: where they are twice as steep there, it lies up to 0.17 steps to the flat
side, at four times up to 0.34, however exact the losses are.
"""

_DRAWS = 400
_UNIFORM = 12**-0.5
"""Standard deviation of a number that may be anywhere in an interval of length 1."""


@dataclass(frozen=True)
class Optimum:
    """Of one size.

    Attributes:
        size: as the table has it.
        position: log2 of the size.
        value: log2 of the best base value, between the grid's values.
        error: its standard error through the noise, and at an edge or a cliff; 0 where nothing is known of it.
        shape: its standard error because the curve is no parabola. Curves of all sizes lean to one side, so it moves no
            slope, but it moves the value.
        grid: log2 of the best value that was tried; among equal ones the middle one.
        loss: mean loss there.
        plateau: the values around the best one, without a gap, whose loss cannot be told from its; at least itself.
        edge: -1 or +1 where the best value is the smallest or the largest tried: the optimum may lie beyond. Else 0.
        cliff: the next value is lost, so that no parabola can be laid: `value` is `grid`, as good as half a step.
    """

    size: str
    position: float
    value: float
    error: float
    shape: float
    grid: float
    loss: float
    plateau: tuple[float, ...]
    edge: int
    cliff: bool

    def reach(self, freedom: float) -> float:
        """Half of its 95 % interval; 0 where the noise is unknown.

        Args:
            freedom: degrees of freedom of the noise.
        """
        return math.hypot(student_t(freedom) * self.error, student_t(math.inf) * self.shape) if self.error else 0.0


def optimum(curve: Curve, noise: Noise) -> Optimum | None:
    """Find the best base value of a size by a parabola; None where all values are lost.

    The parabola goes through the best value and its two neighbours. Where values tie with the best one within the noise
    it is fitted by weighted least squares to all of these and one more on either side. It never leaves what was tried.
    Its error is the spread of the results when all losses are drawn again with the noise of their means; at an edge or
    a cliff, that of a value anywhere in one step of the grid is added, elsewhere that of its shape stands beside it.

    Args:
        curve: losses of the size, levelled.
        noise: of the group.
    """
    grid = list(curve.losses)
    known = curve.means
    means = [known.get(value, math.inf) for value in grid]
    if not known:
        return None
    best = _best(means)
    chance = _Chance(curve, 0.0 if noise.paired is None else student_t(noise.freedom))
    low, high = chance.ties(means, best)
    edge = -1 if best == 0 else 1 if best == len(grid) - 1 else 0
    if len(grid) == 1:
        edge = -1
    cliff = not edge and not (math.isfinite(means[best - 1]) and math.isfinite(means[best + 1]))
    value = _locate(grid, means, chance)
    error = float(np.std([_locate(grid, draw, chance) for draw in chance.draws(means)])) if curve.covariance else 0.0
    step = max((abs(grid[i] - grid[best]) for i in (best - 1, best + 1) if 0 <= i < len(grid)), default=0.0)
    laid = not (edge or cliff)
    if not laid:
        error = math.hypot(error, step * _UNIFORM)
    return Optimum(
        size=curve.size,
        position=curve.position,
        value=value,
        error=error,
        shape=_SHAPE * step if laid else 0.0,
        grid=grid[best],
        loss=means[best],
        plateau=tuple(grid[low : high + 1]),
        edge=edge,
        cliff=cliff,
    )


class _Chance:
    """What else the mean losses of a curve might have been.

    Args:
        curve: levelled.
        reach: standard errors that 19 of 20 cases stay within.

    Attributes:
        errors: of each mean, without what it shares with all others: that moves no optimum.
    """

    def __init__(self, curve: Curve, reach: float) -> None:
        grid = list(curve.losses)
        self._reach = [[reach * curve.error_between(a, b) for b in grid] for a in grid]
        self._covariance = np.array([[curve.covariance.get((a, b), 0.0) for b in grid] for a in grid])
        kept = np.array([float(bool(losses)) for losses in curve.losses.values()])
        centred = np.diag(kept) - np.outer(kept, kept) / kept.sum()
        alone = np.diag(centred @ self._covariance @ centred) / max(1.0 - 1.0 / kept.sum(), 0.5)
        self.errors: list[float] = np.sqrt(alone).tolist()

    def tied(self, means: Sequence[float], best: int, i: int) -> bool:
        """Whether a mean loss lies no further above the best than chance may have put it."""
        return means[i] - means[best] <= self._reach[i][best]

    def ties(self, means: Sequence[float], best: int) -> tuple[int, int]:
        """First and last of the values around the best one that tie with it.

        A value beyond one that is surely worse is none of them, however little is known of it: curves have one bottom.
        """
        low = high = best
        while low > 0 and self.tied(means, best, low - 1):
            low -= 1
        while high < len(means) - 1 and self.tied(means, best, high + 1):
            high += 1
        return low, high

    def draws(self, means: Sequence[float]) -> list[list[float]]:
        """All means drawn again; the draws are the same in every report."""
        lost = ~np.isfinite(means)
        chance = np.random.default_rng(0)
        drawn = chance.multivariate_normal(np.where(lost, 0.0, means), self._covariance, size=_DRAWS, method="eigh")
        return np.where(lost, math.inf, drawn).tolist()


def _best(means: Sequence[float]) -> int:
    """The lowest; among equal ones the middle one."""
    lowest = min(means)
    equal = [i for i, loss in enumerate(means) if loss == lowest]
    return equal[(len(equal) - 1) // 2]


def _locate(grid: list[float], means: list[float], chance: _Chance) -> float:
    """The bottom of the parabola; the best value itself at an edge of the grid, or where a neighbour is lost."""
    best, end = _best(means), len(grid) - 1
    low, high = chance.ties(means, best)
    first = low - 1 if low > 0 and math.isfinite(means[low - 1]) else low
    last = high + 1 if high < end and math.isfinite(means[high + 1]) else high
    if best in (first, last):
        return grid[best]
    x = [value - grid[best] for value in grid[first : last + 1]]
    heights = [loss - means[best] for loss in means[first : last + 1]]
    tallest = max(heights)
    weights = [
        1.0 / (error**2 + (_MISFIT * height) ** 2 + (0.02 * tallest) ** 2 + 1e-30)
        for error, height in zip(chance.errors[first : last + 1], heights, strict=True)
    ]
    bottom = parabola_bottom(x, heights, weights)
    lowest, highest = (x[0] + x[low - first]) / 2, (x[-1] + x[high - first]) / 2
    middle = (x[low - first] + x[high - first]) / 2
    return grid[best] + (middle if bottom is None else min(max(bottom, lowest), highest))


def parabola_bottom(x: Sequence[float], y: Sequence[float], weights: Sequence[float]) -> float | None:
    """Where the weighted least-squares parabola through some points is lowest; None where it has no lowest point.

    Args:
        x: three places or more, all different.
        y: heights there.
        weights: one over the variance of each height.
    """
    total = sum(weights)
    centre = sum(w * xi for w, xi in zip(weights, x, strict=True)) / total
    points = [(w, xi - centre, yi) for w, xi, yi in zip(weights, x, y, strict=True)]
    s2, s3, s4 = (sum(w * xi**power for w, xi, _ in points) for power in (2, 3, 4))
    y0, y1, y2 = (sum(w * xi**power * yi for w, xi, yi in points) for power in (0, 1, 2))
    determinant = s4 - s2 * s2 / total - s3 * s3 / s2
    curvature = (y2 - s2 * y0 / total - s3 * y1 / s2) / determinant
    if not curvature > 1e-12 * max(map(abs, y)):
        return None
    return centre - (y1 - curvature * s3) / s2 / (2 * curvature)
