"""Exponents from measured sizes: a straight line through log ‖A‖_R against log n, or log L, and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mup_lightning.student import student_t


@dataclass(frozen=True)
class Fit:
    """One exponent.

    Attributes:
        exponent: the mean over the seeds of the slope of log ‖A‖_R against log size.
        low: lower end of its 95 % interval.
        high: upper end.
        last: the slope between the two largest sizes alone: it shows what curvature is left.
    """

    exponent: float
    low: float
    high: float
    last: float


def fit(sizes: Sequence[int], values: Sequence[Sequence[float]]) -> Fit:
    """Fit size -> value as c · size^a.

    The interval has two parts, added as squares: the spread of the seeds' own slopes, and the residuals that the lines
    leave. Residuals are taken as if all seeds had the same ones: curvature would be shared, and more seeds would not
    average it away.

    Args:
        sizes: P widths or depths, at least 3.
        values: P values above 0 for each of S >= 2 seeds.
    """
    x = np.log(np.asarray(sizes, dtype=float))
    y_SP = np.log(np.asarray(values, dtype=float))
    seeds, points = y_SP.shape
    x = x - x.mean()
    spread = float((x**2).sum())
    slopes_S = y_SP @ x / spread
    slope = float(slopes_S.mean())
    residuals_SP = y_SP - y_SP.mean(axis=1, keepdims=True) - slopes_S[:, None] * x
    freedom = seeds * (points - 2)
    from_fit = student_t(freedom) * math.sqrt(float((residuals_SP**2).sum()) / freedom / spread)
    from_seeds = student_t(seeds - 1) * float(slopes_S.std(ddof=1)) / math.sqrt(seeds)
    half = math.hypot(from_fit, from_seeds)
    last = float(((y_SP[:, -1] - y_SP[:, -2]) / (x[-1] - x[-2])).mean())
    return Fit(slope, slope - half, slope + half, last)
