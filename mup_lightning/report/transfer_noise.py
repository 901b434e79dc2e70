"""What chance does to a loss: between seeds, and what is left of it where losses are compared seed by seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median, variance

import numpy as np

from mup_lightning.report.transfer_curves import Curve
from mup_lightning.student import student_t

_UNSTABLE = 4.0
"""Values whose seeds spread so many times more than is usual are near divergence and say nothing of the noise."""


@dataclass(frozen=True)
class Noise:
    """Between the runs of one size.

    Attributes:
        deviation: pooled standard deviation of a loss between seeds at one value, nats; None: nowhere two seeds, and
            none given.
        paired: that of what is left once every seed's own share is taken out (see `level`): what chance makes of the
            difference between two values. As `deviation`, where it cannot be told apart.
        freedom: degrees of freedom that `paired` rests on.
    """

    deviation: float | None
    paired: float | None
    freedom: float

    def __str__(self) -> str:
        """For people: between seeds, and seed by seed where that is known."""
        if self.deviation is None or self.paired is None:
            return "unknown (one seed)"
        return f"{self.deviation:.3f}" + (f" ({self.paired:.3f} seed by seed)" if self.paired != self.deviation else "")

    def of_mean(self, seeds: int) -> float:
        """Standard error of the mean loss of so many seeds, beside others of its size; 0 where the noise is unknown."""
        return 0.0 if self.paired is None else self.paired / math.sqrt(seeds)

    def margin(self, seeds: int, others: int) -> float:
        """How far two mean losses of a size may differ by chance, in 19 of 20 cases; 0 where the noise is unknown."""
        if self.paired is None:
            return 0.0
        return student_t(self.freedom) * math.hypot(self.of_mean(seeds), self.of_mean(others))


def level(curves: Sequence[Curve], given: float | None = None) -> tuple[tuple[Curve, ...], Noise]:
    """Find the noise, and put means of different seeds on one level.

    A seed draws the weights and the order of samples; one that is unlucky at one value is unlucky at the next. So a
    loss is taken for mean of its value + share of its seed + rest, at every size by least squares. Differences between
    values have the rest's noise alone, and a value that was run with some of the seeds only is not held to their luck.

    Left out are values that are plainly unstable (`_UNSTABLE` times what the median variance stands for): one run that
    nearly diverged would otherwise make a plateau of everything.

    Args:
        curves: of a group.
        given: standard deviation to use where the table has no two seeds.

    Returns:
        The curves, with the shares of their seeds, and the noise.
    """
    cells = [_Cell(variance(losses.values()), len(losses) - 1) for c in curves for losses in _repeated(c).values()]
    if not cells:
        return tuple(curves), Noise(given, given, math.inf)
    # The median of a chi-square over its degrees of freedom, by Wilson and Hilferty.
    usual = median(cell.variance / (1 - 2 / (9 * cell.freedom)) ** 3 for cell in cells)
    limit = _UNSTABLE**2 * usual
    stable = [cell for cell in cells if cell.variance <= limit]
    freedom = sum(cell.freedom for cell in stable)
    deviation = math.sqrt(sum(cell.variance * cell.freedom for cell in stable) / freedom)
    fits = [_shares(curve, limit) for curve in curves]
    left = sum(fit.freedom for fit in fits)
    if not left:
        return tuple(curves), Noise(deviation, deviation, freedom)
    paired = math.sqrt(sum(fit.squares for fit in fits) / left)
    levelled = tuple(replace(curve, shares=fit.shares) for curve, fit in zip(curves, fits, strict=True))
    return levelled, Noise(deviation, paired, left)


@dataclass(frozen=True)
class _Cell:
    """One size and value that has several seeds."""

    variance: float
    freedom: int


@dataclass(frozen=True)
class _Fit:
    """Seeds' shares at one size; what is left: sum of squares, and its degrees of freedom."""

    shares: dict[str, float]
    squares: float
    freedom: int


def _repeated(curve: Curve) -> dict[float, dict[str, float]]:
    return {value: losses for value, losses in curve.losses.items() if len(losses) > 1}


def _shares(curve: Curve, limit: float) -> _Fit:
    """Least squares without the values' means; among equal solutions the shortest, so that shares add up to 0."""
    stable = [losses for losses in _repeated(curve).values() if variance(losses.values()) <= limit]
    seeds = sorted({seed for losses in stable for seed in losses})
    rows, heights = [], []
    for losses in stable:
        ones = np.array([[float(seed == own) for seed in seeds] for own in losses])
        rows.append(ones - ones.mean(axis=0))
        heights.append(np.array(list(losses.values())) - np.mean(list(losses.values())))
    if len(rows) < 2:
        return _Fit({}, 0.0, 0)
    design, y = np.concatenate(rows), np.concatenate(heights)
    shares, _, rank, _ = np.linalg.lstsq(design, y, rcond=1e-9)
    squares = float(((y - design @ shares) ** 2).sum())
    freedom = len(y) - len(rows) - int(rank)
    if freedom <= 0:
        return _Fit({}, 0.0, 0)
    return _Fit(dict(zip(seeds, shares.tolist(), strict=True)), squares, freedom)
