"""Exponents from measured sizes: a straight line through log ‖A‖_R against log n, or log L, and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_CONFIDENCE = 0.975
"""Of a two-sided 95 % interval."""


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


def student_t(freedom: int) -> float:
    """The 97.5 % point of Student's t distribution, by Simpson's rule and bisection: to about 1e-6.

    Args:
        freedom: degrees of freedom, at least 1.
    """
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)

    def below(t: float) -> float:
        # With x = √freedom · tan θ the density is a power of cos θ, on a finite interval.
        theta = np.linspace(0.0, math.atan(t / math.sqrt(freedom)), 401)
        density = scale * math.sqrt(freedom) * np.cos(theta) ** (freedom - 1)
        weights = np.ones(401)
        weights[1:-1:2], weights[2:-1:2] = 4.0, 2.0
        return 0.5 + float((weights * density).sum()) * theta[1] / 3

    low, high = 0.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) < _CONFIDENCE else (low, middle)
    return (low + high) / 2
