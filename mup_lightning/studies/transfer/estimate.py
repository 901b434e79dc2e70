"""What chance does to a loss: the luck of a seed, which all values of a size share, and the rest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median, variance

import numpy as np

from mup_lightning.studies.transfer.transfer_curves import Curve

_UNSTABLE = 4.0
"""Values whose seeds spread so many times more than is usual are near divergence and say nothing of the noise."""


@dataclass(frozen=True)
class Noise:
    """Of the losses of a group.

    Attributes:
        deviation: pooled standard deviation of a loss between seeds at one value, nats; None: nowhere two seeds, and
            none given.
        paired: that of what is left once every seed's own share is taken out; as `deviation`, where seeds do not meet
            at two values, so that shares cannot be told from the rest.
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


def level(curves: Sequence[Curve], given: float | None = None) -> tuple[tuple[Curve, ...], Noise]:
    """Find the noise, and put means of different seeds on one level.

    A seed draws the weights and the order of samples; one that is unlucky at one value is unlucky at the next. So a
    loss is taken for the mean of its value + the share of its seed + a rest: a linear mixed model, where shares and
    rests are random and independent at every size. The rest's variance is what a least-squares fit of both leaves,
    over all sizes; the shares' is what is left of the variance between seeds at one value. Means and shares then are
    the best linear unbiased ones (Henderson 1975), and differences of two means are as sure as the seeds make them
    that stand behind them: of the same seeds, shares cancel; of other seeds, they count in full.

    Values that are plainly unstable (`_UNSTABLE` times what the median variance stands for) do not count in the noise,
    and have their own: one run that nearly diverged would otherwise make a plateau of everything.

    Args:
        curves: of a group.
        given: standard deviation to use where the table has no two seeds.

    Returns:
        The curves, with their seeds' shares and the covariance of their means, and the noise.
    """
    cells = [(variance(losses.values()), len(losses) - 1) for c in curves for losses in _repeated(c)]
    if not cells:
        return tuple(_solve(c, (given or 0.0) ** 2, 0.0, math.inf) for c in curves), Noise(given, given, math.inf)
    # The median of a chi-square over its degrees of freedom, by Wilson and Hilferty.
    usual = median(value / (1 - 2 / (9 * freedom)) ** 3 for value, freedom in cells)
    limit = _UNSTABLE**2 * usual
    stable = [cell for cell in cells if cell[0] <= limit]
    freedom = sum(free for _, free in stable)
    between = sum(value * free for value, free in stable) / freedom
    fits = [_residuals(curve, limit) for curve in curves]
    left = sum(free for _, free in fits)
    rest = sum(squares for squares, _ in fits) / left if left else between
    shares = max(0.0, between - rest)
    noise = Noise(math.sqrt(between), math.sqrt(rest), left or freedom)
    return tuple(_solve(curve, rest, shares, limit) for curve in curves), noise


def _repeated(curve: Curve) -> list[dict[str, float]]:
    return [losses for losses in curve.losses.values() if len(losses) > 1]


def _residuals(curve: Curve, limit: float) -> tuple[float, int]:
    """What means and shares, both fitted by least squares, leave: sum of squares, and its degrees of freedom."""
    stable = [losses for losses in _repeated(curve) if variance(losses.values()) <= limit]
    if len(stable) < 2:
        return 0.0, 0
    y, _, seeds_NS, values_NV = _design(stable)
    design = np.concatenate([values_NV, seeds_NS], axis=1)
    solution, _, rank, _ = np.linalg.lstsq(design, y, rcond=1e-9)
    return float(((y - design @ solution) ** 2).sum()), len(y) - int(rank)


def _design(cells: Sequence[dict[str, float]]) -> tuple[np.ndarray, list[str], np.ndarray, np.ndarray]:
    """N losses, their S seeds' names, and who belongs to whom: to seeds (N x S), to V values (N x V)."""
    pairs = [(row, seed, loss) for row, losses in enumerate(cells) for seed, loss in losses.items()]
    seeds = sorted({seed for _, seed, _ in pairs})
    seeds_NS = np.array([[float(seed == own) for own in seeds] for _, seed, _ in pairs])
    values_NV = np.array([[float(row == own) for own in range(len(cells))] for row, _, _ in pairs])
    return np.array([loss for _, _, loss in pairs]), seeds, seeds_NS, values_NV


def _solve(curve: Curve, rest: float, shares: float, limit: float) -> Curve:
    """Means and shares by generalised least squares.

    Args:
        curve: a size.
        rest: variance of the rest.
        shares: variance of the shares.
        limit: variance between seeds at one value from which it has its own.
    """
    kept = [(value, losses) for value, losses in curve.losses.items() if losses]
    if not kept or not rest + shares:
        return curve
    y, seeds, seeds_NS, values_NV = _design([losses for _, losses in kept])
    own = [variance(losses.values()) if len(losses) > 1 else 0.0 for _, losses in kept]
    rests = [mine if mine > limit else rest for mine in own]
    floor = 1e-9 * (rest + shares)  # shares alone would be no invertible matrix
    inverse = np.linalg.inv(np.diag(np.maximum(values_NV @ rests, floor)) + shares * seeds_NS @ seeds_NS.T)
    covariance_VV = np.linalg.inv(values_NV.T @ inverse @ values_NV)
    means = covariance_VV @ values_NV.T @ inverse @ y
    found = shares * seeds_NS.T @ inverse @ (y - values_NV @ means)
    covariance = {
        (kept[i][0], kept[j][0]): float(covariance_VV[i, j]) for i in range(len(kept)) for j in range(len(kept))
    }
    return replace(curve, shares=dict(zip(seeds, found.tolist(), strict=True)), covariance=covariance)
