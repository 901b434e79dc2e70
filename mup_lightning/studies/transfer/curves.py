"""Mean loss against base value at each size, and the noise between seeds."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mup_lightning.studies.transfer.losses import refuse_twice

Array = NDArray[np.float64]

_UNSTABLE = 4.0
"""Values whose seeds spread this many times more than usual are near divergence and say nothing about the noise."""


@dataclass(frozen=True)
class Noise:
    """Standard deviation of a loss between seeds, nats, pooled, and without each seed's effect; None: unknown."""

    between_seeds: float | None
    residual: float | None
    dof: float

    def __str__(self) -> str:
        if self.between_seeds is None or self.residual is None:
            return "unknown (one seed)"
        paired = f" ({self.residual:.3f} seed by seed)" if self.residual != self.between_seeds else ""
        return f"{self.between_seeds:.3f}{paired}"


@dataclass(frozen=True)
class Curve:
    """Mean loss against base value at one size, adjusted for the seeds that ran each value."""

    size: str  # the size as written in the table
    position: float  # log2 of it
    values: Array  # V log2 of the base values, ascending
    # V mean losses, nats; infinite where any seed diverged: the mean of the others would flatter the value
    means: Array
    root: Array  # V x K matrix R with R Rᵀ the covariance of the means, nats²; zero where nothing is known
    spread: Array  # V standard deviations between seeds, nats; NaN where there are not two

    @property
    def trained(self) -> dict[float, float]:
        """Value -> mean loss, of those that are not lost."""
        tried = np.isfinite(self.means)
        return dict(zip(self.values[tried].tolist(), self.means[tried].tolist(), strict=True))

    @property
    def lost(self) -> list[float]:
        """The other values, ascending."""
        return self.values[~np.isfinite(self.means)].tolist()

    def at(self, value: float) -> float | None:
        """Mean loss at log2 of a value, by a parabola; infinite at or beside a lost one, None where it is unknown."""
        grid, near = self.values, np.isclose(self.values, value)
        if near.any():
            return float(self.means[near][0])
        if not grid[0] < value < grid[-1]:
            return None
        above = int(np.searchsorted(grid, value))
        if not np.isfinite(self.means[above - 1 : above + 1]).all():
            return math.inf
        three = sorted(np.flatnonzero(np.isfinite(self.means)), key=lambda i: abs(grid[i] - value))[:3]
        return float(np.polyval(np.polyfit(grid[three], self.means[three], len(three) - 1), value))

    @property
    def difference_ses(self) -> Array:
        """Standard error of the difference of each two means, nats; 0 where nothing is known."""
        return np.sqrt(((self.root[:, None] - self.root) ** 2).sum(axis=-1))


def curves_of(runs: pd.DataFrame, given: float | None = None) -> tuple[list[Curve], Noise]:
    """A curve for each size, small to large, of means that do not depend on which seeds ran which value; and the noise.

    A seed draws the initial weights and the order of samples, and affects neighbouring values alike. So a loss is the
    mean of its value + a random effect of its seed + a residual, independent between sizes (a linear mixed model). The
    residual's variance is what a least-squares fit of values and seeds leaves, pooled over all sizes; the effects' is
    the rest of the variance between seeds at one value. Means are by generalised least squares (Henderson 1975).
    Unstable values do not count towards the noise and keep their own spread. `given` is the standard deviation between
    seeds, nats, to assume where no value has two. Raises UserError where a run is there twice.
    """
    refuse_twice(runs)
    runs = runs.sort_values(["position", "log2_value", "seed"])
    trained = runs[~runs["loss"].isna().groupby([runs["position"], runs["log2_value"]]).transform("any")]
    cells = trained.groupby(["position", "log2_value"])["loss"].agg(["var", "count"]).query("count > 1")
    if cells.empty:
        noise, residual, effect, limit = Noise(given, given, math.inf), (given or 0.0) ** 2, 0.0, math.inf
    else:
        dof = cells["count"] - 1
        # Median of a chi-square over its degrees of freedom (Wilson and Hilferty 1931).
        limit = _UNSTABLE**2 * float((cells["var"] / (1 - 2 / (9 * dof)) ** 3).median())
        stable = cells["var"] <= limit
        between = float((cells["var"] * dof)[stable].sum() / dof[stable].sum())
        squares, left = np.sum([_residuals(size, limit) for _, size in trained.groupby("position")], axis=0)
        residual = squares / left if left else between
        effect = max(0.0, between - residual)
        noise = Noise(math.sqrt(between), math.sqrt(residual), float(left or dof[stable].sum()))
    own = runs.groupby("position")
    return [_curve(size, trained.loc[trained["position"] == x], residual, effect, limit) for x, size in own], noise


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


def _curve(runs: pd.DataFrame, trained: pd.DataFrame, residual: float, effect: float, limit: float) -> Curve:
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
    return Curve(runs["size"].iloc[0], runs["position"].iloc[0], values_V, means_V, root, spread_V)
