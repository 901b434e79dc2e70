"""The best base value of each size with its error, how it moves with the size, and what it costs to tune small."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from mup_lightning.studies.scaling import student_t
from mup_lightning.studies.transfer.curves import Array, Curve, Noise, curves_of

_MISFIT = 0.25
"""A loss h nats above the best one is trusted to this fraction of h: curves are parabolas only near the bottom."""

_SHAPE = 0.15
"""Standard error of a parabola's vertex, in steps of the grid, because no loss curve is exactly a parabola.

Curves are steeper on the side of divergence: where they are twice as steep there, the vertex lies up to 0.17 steps to
the flat side, at four times up to 0.34, however exact the losses are.
"""

_DRAWS = 4000
_UNIFORM = 12**-0.5  # standard deviation of a uniform distribution over an interval of length 1


@dataclass(frozen=True)
class Optimum:
    """The best base value of one size, as written in the table, at `position`, its log2."""

    size: str
    position: float
    value: float  # log2 of the best base value, between the values tried
    se: float  # its standard error from the noise and, at an edge or cliff, from the grid; 0: unknown
    # The same because curves are not parabolas. They lean to one side at every size, so it enters no slope.
    shape_se: float
    ci_half_width: float  # half the width of its 95 % interval; 0: unknown
    best_value: float  # log2 of the best value tried (the middle one if several are equal), with the mean loss there
    loss: float
    # The best value and its neighbours, without a gap, whose losses cannot be told from its own.
    plateau: tuple[float, ...]
    edge: int  # -1 or +1 where the best value is the smallest or largest tried, so the optimum may lie beyond; else 0
    cliff: bool  # a neighbour is lost, so that there is no parabola: `value` is `best_value`, within half a step
    # Of the values tried, -1 and +1, those that are as good as the best one: beyond them may be better ones.
    ends: frozenset[int] = frozenset()


def optima_of(runs: pd.DataFrame, noise: float | None = None) -> tuple[list[tuple[Curve, Optimum | None]], Noise]:
    """`curves_of`, each curve with its optimum."""
    curves, found = curves_of(runs, noise)
    return [(curve, optimum(curve, found.dof)) for curve in curves], found


def optimum(curve: Curve, dof: float) -> Optimum | None:
    """The best base value of a size by a parabola; None where all values are lost.

    It passes through the best value and its two neighbours, or is fitted by weighted least squares to all that tie with
    it and one more on either side. The vertex stays within what was tried. Its standard error is the spread over losses
    redrawn from the noise model (a parametric bootstrap); at an edge or cliff that of a value anywhere within one grid
    step is added, elsewhere `_SHAPE`. `dof` are the degrees of freedom of the noise.
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
    half_width = math.hypot(student_t(dof) * se, student_t(math.inf) * shape_se) if se else 0.0
    tied, found = tuple(grid[low_D[0] : high_D[0] + 1].tolist()), (float(grid[best]), float(curve.means[best]))
    ends = frozenset(end for end, is_tied in ((-1, low_D[0] == 0), (1, high_D[0] == last)) if is_tied)
    value = float(vertices_D[0])
    return Optimum(curve.size, curve.position, value, se, shape_se, half_width, *found, tied, edge, cliff, ends)


def _vertices(grid: Array, losses_DV: Array, ties_VV: Array, errors_V: Array) -> tuple[Array, ...]:
    """Optimum of each of D curves, and indices of its best value and of the first and last that tie with it (D each).

    Losses are infinite where lost; two tie up to a difference of `ties_VV`. A value beyond one that is surely worse is
    no tie, however uncertain it is: curves have one minimum.
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


@dataclass(frozen=True)
class Regret:
    """Cost at one size of a value tuned at the smallest size, on the grid."""

    value: float  # log2 of the tuned value; NaN where nothing trained at the smallest size
    nats: float | None = None  # mean loss with that value minus the lowest mean loss; None where there is none
    why: str = ""  # there is none: "diverged", "missing" (not run) or "untuned" (nothing trained at the smallest size)
    ci_half_width: float = 0.0  # half the width of the 95 % interval of `nats`; 0 where the noise is unknown
    at_least: bool = False  # the best value of this size is the last one tried, so the regret may be larger
    # Value -> regret and its half width, of values that tie with the tuned one at the smallest size and trained here.
    ties: dict[float, tuple[float, float]] = field(default_factory=dict)

    def __str__(self) -> str:
        if self.nats is None:
            return {"missing": "not tried", "untuned": "-"}.get(self.why, self.why)
        half = f" (±{self.ci_half_width:.3f})" if self.ci_half_width else ""
        return f"{'≥ ' if self.at_least else ''}{self.nats:.3f}{half}"


def regret(curve: Curve, smallest: Optimum | None, own: Optimum | None, dof: float) -> Regret:
    """The regret of a curve's size, from the optimum of the smallest size and its own (None where nothing trained)."""
    if smallest is None:
        return Regret(math.nan, why="untuned")
    value, costs = smallest.best_value, {}
    if own is not None:
        ses = curve.difference_ses[:, curve.values == own.best_value][:, 0]
        half_widths = dict(zip(curve.values.tolist(), (student_t(dof) * ses).tolist(), strict=True))
        trained = {tie: curve.trained[tie] for tie in smallest.plateau if tie in curve.trained}
        costs = {tie: (loss - own.loss, half_widths[tie]) for tie, loss in trained.items()}
    if value not in costs:
        return Regret(value, why="diverged" if value in curve.lost else "missing", ties=costs)
    nats, half_width = costs.pop(value)
    return Regret(value, nats, "", half_width, bool(own and own.edge), costs)


@dataclass(frozen=True)
class Slope:
    """Slope of the log2 optimum against log2 size."""

    slope: float  # powers of two of the value per doubling of the size, by ordinary least squares
    low: float  # lower end of its 95 % interval, up to `high`; infinite where it is unknown (two sizes of one seed)
    high: float
    mean: float  # of the optima, where the line passes at the mean log2 size; `mean_se` is its standard error
    mean_se: float
    dof: float  # degrees of freedom of the interval
    # "at most" or "at least" where optima lie at an edge of the grid, so that the true slope is below or above
    # this one; "unknown" where some would turn it up and some down; else empty
    bound: str


@dataclass(frozen=True)
class Regression:
    """A linear model of optima, y = X b: C optima, P coefficients.

    An optimum misses the model by its own error, known from the seeds, and by a misfit common to all (true curvature,
    loss curves that are not parabolas), whose variance is what the residuals leave beyond the known errors, at least 0.
    """

    solve: Array  # P x C matrix A: the coefficients are A y
    coefficients: Array  # b
    known: Array  # C variances of the optima's own errors
    misfit: float  # variance of the misfit
    left: int  # degrees of freedom of the residuals, C - P
    plain: float  # variance of the optima by the residuals alone, where one seed leaves the noise unknown; else 0
    noise_dof: float  # degrees of freedom of the known errors

    def error(self, of: Array, more: float = 0.0, own: float = 0.0) -> tuple[float, float]:
        """Standard error of `of` @ b, and its degrees of freedom (Welch and Satterthwaite).

        Of an optimum there rather than the model's value, with `more` = 1 misfit and the variance `own` of its error.
        """
        squares = (of @ self.solve) ** 2
        known, spread = float(squares @ self.known) + own, float(squares.sum()) + more
        misfit = self.misfit * spread
        per_dof = known**2 / self.noise_dof + (misfit**2 / self.left if self.left else 0.0)
        dof = max(1.0, (known + misfit) ** 2 / per_dof) if per_dof else math.inf
        found = math.sqrt(known + misfit), dof
        if not self.plain:
            return found
        return max(found, (math.sqrt(self.plain * spread), float(self.left)), key=lambda e: student_t(e[1]) * e[0])


def regress_optima(optima: Sequence[Optimum], design: Array, noise: Noise, *, weighted: bool = False) -> Regression:
    """The regression of C optima with their errors; see `regress`."""
    return regress(np.array([o.value for o in optima]), np.array([o.se**2 for o in optima]), design, noise, weighted)


def regress(y: Array, known: Array, design: Array, noise: Noise, weighted: bool = False) -> Regression:
    """Fit a linear model by ordinary least squares, or weighted by the errors and the misfit of that fit.

    `y` are C estimates, `known` the variances of their errors, of `noise`, and `design` is X, C x P, of rank P. With as
    many estimates as coefficients the misfit is unknown, and counts as 0.
    """
    weights, left = np.ones(len(y)), len(y) - design.shape[1]
    for last in (not weighted, True):
        roots = np.sqrt(weights)
        solve = np.linalg.pinv(roots[:, None] * design) * roots
        residual = np.eye(len(y)) - design @ solve
        expected = weights @ residual**2  # of each variance in the weighted sum of squares
        squares = float(weights @ (residual @ y) ** 2)
        misfit = max(0.0, squares - float(expected @ known)) / float(expected.sum()) if left else 0.0
        if last:
            break
        weights = 1 / np.maximum(known + misfit, 1e-12)
    plain = squares / float(expected.sum()) if noise.residual is None and left else 0.0
    return Regression(solve.astype(np.float64), solve @ y, known, misfit, left, plain, noise.dof)


def slope_of(optima: Sequence[Optimum], noise: Noise) -> Slope | None:
    """Fit a line to the optima; None: there are fewer than two. With one seed it is a plain regression's interval."""
    left = len(optima) - 2
    if left < 0:
        return None
    x = np.array([o.position for o in optima])
    x = x - x.mean()
    line = regress_optima(optima, np.stack([np.ones_like(x), x], axis=1), noise)
    mean, slope = line.coefficients.tolist()
    # An optimum at an edge moves the slope in the edge's direction, times the sign of its size's offset from the mean.
    turns = {math.copysign(1.0, xi) * o.edge for xi, o in zip(x, optima, strict=True) if o.edge and xi}
    bound = {(): "", (-1.0,): "at most", (1.0,): "at least"}.get(tuple(turns), "unknown")
    if not left and (noise.residual is None or not line.known.all()):
        return Slope(slope, -math.inf, math.inf, mean, math.inf, math.inf, bound)
    mean_se, _ = line.error(np.array([1.0, 0.0]))
    se, dof = line.error(np.array([0.0, 1.0]))
    half = student_t(dof) * se
    return Slope(slope, slope - half, slope + half, mean, mean_se, dof, bound)
