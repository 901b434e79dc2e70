"""Noise between seeds, and the best base value of each size with its error."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mup_lightning.studies.fit import student_t

Array = NDArray[np.float64]

_UNSTABLE = 4.0
"""Values whose seeds spread this many times more than usual are near divergence and say nothing about the noise."""

_MISFIT = 0.25
"""A loss h nats above the best one is trusted to this fraction of h: curves are parabolas only near the bottom."""

_SHAPE = 0.15
"""Standard error of a parabola's vertex, in steps of the grid, because no loss curve is exactly a parabola.

Curves are steeper on the side of divergence: where they are twice as steep there, the vertex lies up to 0.17 steps to
the flat side, at four times up to 0.34, however exact the losses are.
"""

_DRAWS = 4000
_UNIFORM = 12**-0.5
"""Standard deviation of a uniform distribution over an interval of length 1."""


@dataclass(frozen=True)
class Noise:
    """How much losses differ between seeds.

    Attributes:
        between_seeds: standard deviation of a loss between seeds at one value, pooled, nats; None: unknown.
        residual: standard deviation once each seed's random effect is removed; None: unknown.
        dof: degrees of freedom of `residual`.
    """

    between_seeds: float | None
    residual: float | None
    dof: float

    def __str__(self) -> str:
        """For people: between seeds, and seed by seed where that differs."""
        if self.between_seeds is None or self.residual is None:
            return "unknown (one seed)"
        paired = f" ({self.residual:.3f} seed by seed)" if self.residual != self.between_seeds else ""
        return f"{self.between_seeds:.3f}{paired}"


@dataclass(frozen=True)
class Curve:
    """Mean loss against base value at one size, adjusted for the seeds that ran each value.

    Attributes:
        size: the size as written in the table.
        position: log2 of the size.
        values: V log2 of the base values, ascending.
        means: V mean losses, nats; infinite where any seed has no loss: the mean of the others would flatter the value.
        root: V x K matrix R with R Rᵀ the covariance of the means, nats²; zero where nothing is known.
        spread: V standard deviations between seeds, nats; NaN where there are not two.
        lost: values without a mean -> "diverged" or "stopped" (given up as hopeless).
    """

    size: str
    position: float
    values: Array
    means: Array
    root: Array
    spread: Array
    lost: dict[float, str]

    @property
    def trained(self) -> dict[float, float]:
        """Value -> mean loss, of those that are not lost."""
        both = zip(self.values.tolist(), self.means.tolist(), strict=True)
        return {value: mean for value, mean in both if value not in self.lost}

    @property
    def difference_ses(self) -> Array:
        """Standard error of the difference of each two means, nats; 0 where nothing is known."""
        return np.sqrt(((self.root[:, None] - self.root) ** 2).sum(axis=-1))

    def difference_se(self, value: float, other: float) -> float:
        """`difference_ses` of two of the values."""
        return float(self.difference_ses[self.values == value, self.values == other].item())


def adjust_for_seeds(runs: pd.DataFrame, given: float | None = None) -> tuple[tuple[Curve, ...], Noise]:
    """Estimate the noise, and mean losses that do not depend on which seeds ran which value.

    A seed draws the initial weights and the order of samples, and affects neighbouring values alike. So a loss is the
    mean of its value + a random effect of its seed + a residual, independent between sizes (a linear mixed model). The
    residual's variance is what a least-squares fit of values and seeds leaves, pooled over all sizes; the effects' is
    the rest of the variance between seeds at one value. Means are by generalised least squares, and their covariance
    reflects which seeds they share (Henderson 1975). Unstable values do not count towards the noise and keep their own
    spread.

    Args:
        runs: runs of one group, see `read_losses`.
        given: standard deviation between seeds, nats, to assume where no value has two.

    Returns:
        A curve for each size, small to large, and the noise.
    """
    sizes = [size.sort_values(["log2_value", "seed"]) for _, size in runs.groupby("position")]
    lost = [size[size["loss"].isna()].groupby("log2_value")["stopped"].all() for size in sizes]
    trained = [size[~size["log2_value"].isin(gone.index)] for size, gone in zip(sizes, lost, strict=True)]
    cells = pd.concat(trained).groupby(["position", "log2_value"])["loss"].agg(["var", "count"]).query("count > 1")
    if cells.empty:
        noise, residual, effect, limit = Noise(given, given, math.inf), (given or 0.0) ** 2, 0.0, math.inf
    else:
        dof = cells["count"] - 1
        # Median of a chi-square over its degrees of freedom (Wilson and Hilferty 1931).
        limit = _UNSTABLE**2 * float((cells["var"] / (1 - 2 / (9 * dof)) ** 3).median())
        stable = cells["var"] <= limit
        between = float((cells["var"] * dof)[stable].sum() / dof[stable].sum())
        squares, left = np.sum([_residuals(size, limit) for size in trained], axis=0)
        residual = squares / left if left else between
        effect = max(0.0, between - residual)
        noise = Noise(math.sqrt(between), math.sqrt(residual), float(left or dof[stable].sum()))
    curves = (_curve(*own, residual, effect, limit) for own in zip(sizes, trained, lost, strict=True))
    return tuple(curves), noise


def _one_hot(labels: pd.Series) -> Array:
    """Design matrix of N labels: a column for each distinct one, in order."""
    return (labels.to_numpy()[:, None] == np.unique(labels)).astype(float)


def _residuals(trained: pd.DataFrame, limit: float) -> tuple[float, int]:
    """Residual sum of squares at one size, after value and seed effects, and its degrees of freedom."""
    stable = trained[trained.groupby("log2_value")["loss"].transform("var") <= limit]  # NaN for a single seed, left out
    if stable["log2_value"].nunique() < 2:
        return 0.0, 0
    design = np.concatenate([_one_hot(stable["log2_value"]), _one_hot(stable["seed"])], axis=1)
    losses = stable["loss"].to_numpy()
    solution, _, rank, _ = np.linalg.lstsq(design, losses, rcond=1e-9)
    return float(((losses - design @ solution) ** 2).sum()), len(losses) - int(rank)


def _curve(
    runs: pd.DataFrame, trained: pd.DataFrame, lost: pd.Series, residual: float, effect: float, limit: float
) -> Curve:
    """Fit one size by generalised least squares, given the variances of the residuals and of the random effects."""
    cells = trained.groupby("log2_value")["loss"].agg(["mean", "var"])
    values_V = np.unique(runs["log2_value"])
    kept = np.isin(values_V, cells.index)
    values_NV, seeds_NS = _one_hot(trained["log2_value"]), _one_hot(trained["seed"])
    own_V = np.where(cells["var"] > limit, cells["var"], residual)
    own_N = np.maximum(values_NV @ own_V, 1e-9 * (residual + effect) or 1.0)  # random effects alone would be singular
    weights_NV = np.linalg.solve(np.diag(own_N) + effect * seeds_NS @ seeds_NS.T, values_NV)
    fit_VN = np.linalg.solve(values_NV.T @ weights_NV, weights_NV.T)
    means_V, spread_V = np.full(len(kept), math.inf), np.full(len(kept), math.nan)
    means_V[kept], spread_V[kept] = fit_VN @ trained["loss"].to_numpy(), np.sqrt(cells["var"])
    root = np.zeros((len(kept), len(trained) + seeds_NS.shape[1]))
    if residual + effect:
        root[kept] = fit_VN @ np.hstack([np.diag(np.sqrt(own_N)), math.sqrt(effect) * seeds_NS])
    why = {float(value): "stopped" if stopped else "diverged" for value, stopped in lost.items()}
    return Curve(runs["size"].iloc[0], runs["position"].iloc[0], values_V, means_V, root, spread_V, why)


@dataclass(frozen=True)
class Optimum:
    """The best base value of one size.

    Attributes:
        size: the size as written in the table.
        position: log2 of the size.
        value: log2 of the best base value, between the values tried.
        se: its standard error from the noise and, at an edge or cliff, from the grid; 0: unknown.
        shape_se: its standard error because curves are not parabolas. They lean to the same side at every size, so it
            enters no slope.
        ci_half_width: half the width of its 95 % interval; 0: unknown.
        best_value: log2 of the best value tried; the middle one if several are equal.
        loss: mean loss there.
        plateau: the best value and its neighbours, without a gap, whose losses cannot be told from its own.
        edge: -1 or +1 where the best value is the smallest or largest tried, so the optimum may lie beyond; else 0.
        cliff: a neighbour is lost, so that there is no parabola: `value` is `best_value`, within half a step.
    """

    size: str
    position: float
    value: float
    se: float
    shape_se: float
    ci_half_width: float
    best_value: float
    loss: float
    plateau: tuple[float, ...]
    edge: int
    cliff: bool


def optimum(curve: Curve, dof: float) -> Optimum | None:
    """Find the best base value of a size by a parabola; None where all values are lost.

    The parabola passes through the best value and its two neighbours. Where values tie with the best one within the
    noise, it is fitted by weighted least squares to all of these and one more on either side. The vertex stays within
    what was tried. Its standard error is the spread over losses redrawn from the noise model (a parametric bootstrap);
    at an edge or cliff that of a value anywhere within one grid step is added, elsewhere `_SHAPE`.

    Args:
        curve: the losses.
        dof: degrees of freedom of the noise.
    """
    grid, tried = curve.values, np.isfinite(curve.means)
    if not tried.any():
        return None
    centred = curve.root - tried[:, None] * curve.root[tried].mean(axis=0)  # a common shift moves no optimum
    errors_V = np.sqrt((centred**2).sum(axis=1) / max(1.0 - 1.0 / tried.sum(), 0.5))
    drawn = curve.means + np.random.default_rng(0).standard_normal((_DRAWS, curve.root.shape[1])) @ curve.root.T
    losses_DV = np.vstack([curve.means, drawn])
    vertices_D, best_D, low_D, high_D = _vertices(grid, losses_DV, student_t(dof) * curve.difference_ses, errors_V)
    best, last = int(best_D[0]), len(grid) - 1
    edge = -1 if best == 0 else 1 if best == last else 0
    cliff = not edge and not (tried[best - 1] and tried[best + 1])
    step = float(np.abs(grid[max(0, best - 1) : best + 2] - grid[best]).max())
    se = float(vertices_D[1:].std()) if curve.root.any() else 0.0
    se, shape_se = (math.hypot(se, step * _UNIFORM), 0.0) if edge or cliff else (se, _SHAPE * step)
    return Optimum(
        size=curve.size,
        position=curve.position,
        value=float(vertices_D[0]),
        se=se,
        shape_se=shape_se,
        ci_half_width=math.hypot(student_t(dof) * se, student_t(math.inf) * shape_se) if se else 0.0,
        best_value=float(grid[best]),
        loss=float(curve.means[best]),
        plateau=tuple(grid[low_D[0] : high_D[0] + 1].tolist()),
        edge=edge,
        cliff=cliff,
    )


def _vertices(grid: Array, losses_DV: Array, ties_VV: Array, errors_V: Array) -> tuple[Array, ...]:
    """Optimum of each of D curves: the parabola's vertex, or the best value at an edge or next to a lost one.

    Args:
        grid: V log2 values.
        losses_DV: losses; infinite: lost.
        ties_VV: difference of two losses up to which they tie.
        errors_V: standard error of each loss.

    Returns:
        The optima, and indices of the best value and of the first and last that tie with it (D each). A value beyond
        one that is surely worse is no tie, however uncertain it is: curves have one minimum.
    """
    index, rows, last = np.arange(len(grid)), np.arange(len(losses_DV)), len(grid) - 1
    equal = losses_DV == losses_DV.min(axis=1, keepdims=True)
    rank = equal.cumsum(axis=1)
    best = (equal & (rank == (rank[:, -1:] + 1) // 2)).argmax(axis=1)
    heights = losses_DV - losses_DV[rows, best][:, None]
    worse = heights > ties_VV[:, best].T
    low = np.where(worse & (index < best[:, None]), index, -1).max(axis=1) + 1
    high = np.where(worse & (index > best[:, None]), index, last + 1).min(axis=1) - 1
    first = low - ((low > 0) & np.isfinite(losses_DV[rows, np.maximum(low - 1, 0)]))
    end = high + ((high < last) & np.isfinite(losses_DV[rows, np.minimum(high + 1, last)]))
    fitted = (index >= first[:, None]) & (index <= end[:, None])
    heights = np.where(fitted, heights, 0.0)
    tallest = heights.max(axis=1, keepdims=True)
    weights = fitted / (errors_V**2 + (_MISFIT * heights) ** 2 + (0.02 * tallest) ** 2 + 1e-30)
    inner = (first < best) & (best < end)
    weights /= weights.max(axis=1, keepdims=True)
    x = grid - grid[best][:, None]
    powers = np.stack([np.ones_like(x), x, x**2], axis=-1)
    normal = np.where(inner[:, None, None], np.einsum("dv,dvi,dvj->dij", weights, powers, powers), np.eye(3))
    moments = np.einsum("dv,dvi,dv->di", weights, powers, heights)
    _, linear, square = np.linalg.solve(normal, moments[..., None])[..., 0].T
    x_first, x_low, x_high, x_end = (x[rows, i] for i in (first, low, high, end))
    convex = square > 1e-12 * tallest[:, 0]
    vertex = np.clip(-linear / np.where(convex, 2 * square, 1.0), (x_first + x_low) / 2, (x_end + x_high) / 2)
    vertex = np.where(convex, vertex, (x_low + x_high) / 2)
    return grid[best] + np.where(inner, vertex, 0.0), best, low, high
