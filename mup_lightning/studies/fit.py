"""Exponents from measured sizes, how sure they are, and what a band makes of them: shared by all studies."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Fit:
    """An exponent a of value = c · size^a.

    Attributes:
        exponent: mean over the seeds of the slope of log value against log size.
        low: lower end of its 95 % interval.
        high: upper end.
        last: the slope between the two largest sizes alone, which shows how much curvature is left.
    """

    exponent: float
    low: float
    high: float
    last: float

    @property
    def half_width(self) -> float:
        """Half the width of the 95 % interval."""
        return (self.high - self.low) / 2


def fit(sizes: Sequence[float], values: Sequence[Sequence[float]]) -> Fit:
    """Fit a least-squares line to log value against log size for every seed, and average the slopes.

    The interval is that of the mean of S independent slopes (Student's t, S - 1 degrees of freedom). The residuals of
    the lines do not enter: they would count curvature as noise, treat all sizes as equally noisy, and treat runs that
    share a seed's data order as independent. Curvature shows in `last` instead.

    Args:
        sizes: P widths or depths, at least 3.
        values: P values above 0 for each of S seeds, at least 2.
    """
    x_P = np.log(np.asarray(sizes, dtype=float))
    y_SP = np.log(np.asarray(values, dtype=float))
    centred_P = x_P - x_P.mean()
    slopes_S = y_SP @ centred_P / (centred_P**2).sum()
    seeds = len(slopes_S)
    slope = float(slopes_S.mean())
    half = student_t(seeds - 1) * float(slopes_S.std(ddof=1)) / math.sqrt(seeds)
    last = float((y_SP[:, -1] - y_SP[:, -2]).mean() / (x_P[-1] - x_P[-2]))
    return Fit(slope, slope - half, slope + half, last)


def student_t(degrees_of_freedom: float) -> float:
    """The 97.5 % point of Student's t: the half width of a two-sided 95 % interval in standard errors."""
    return float(stats.t.ppf(0.975, degrees_of_freedom))


class Verdict(StrEnum):
    """What a study concludes. UNCLEAR: the data allow both."""

    PASS = "PASS"
    FAIL = "FAIL"
    UNCLEAR = "UNCLEAR"

    @property
    def exit_code(self) -> int:
        """Exit status of a verb that ends in this verdict: 0 PASS, 3 FAIL, 4 UNCLEAR (1 and 2 are errors)."""
        return {Verdict.PASS: 0, Verdict.FAIL: 3, Verdict.UNCLEAR: 4}[self]


def overall(verdicts: Iterable[Verdict]) -> Verdict:
    """FAIL if any is, else UNCLEAR if any is, else PASS."""
    found = set(verdicts)
    return next((verdict for verdict in (Verdict.FAIL, Verdict.UNCLEAR) if verdict in found), Verdict.PASS)
