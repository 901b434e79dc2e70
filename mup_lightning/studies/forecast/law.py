"""L(N, D) = E + A N^-α + B D^-β (Hoffmann et al. 2022, approach 3), fitted to a ladder of small models.

Shapes: C cells of the ladder, S fits at once, K sizes that vary (N, D or one of them), P = 1 + 2K parameters.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from mup_lightning.errors import UserError
from mup_lightning.studies.transfer.curves import Array

DRAWS = 400
_HUBER = 1e-3
"""Residual of a log loss, beyond which a cell counts linearly (Hoffmann et al.); at least twice the noise."""

_EXPONENTS = 0.02, 2.0
"""Bounds of α and β."""

_ON_THE_LINE = 0.1
"""How far the target's log N and log D may be from the line that they keep to in a ladder of one direction."""


def model_size(width: int, depth: int) -> float:
    """The N of the law: 12 depth width², the matrices inside blocks but for a factor that all sizes share.

    Embeddings are left out (Kaplan et al. 2020): small models have most of their parameters there, which buy little.
    """
    return 12.0 * depth * width**2


@dataclass(frozen=True)
class Cell:
    """The loss of one model size and number of tokens (D) at its best base value.

    Attributes:
        parameters: of the whole model.
        loss: mean over the seeds, nats per token.
        se: its standard error, nats; 0: unknown.
        spread: standard deviation between seeds, nats; 0: unknown.
        dof: degrees of freedom of both.
        log2_value: log2 of the best value tried.
        curve: training losses along the run, see `config.forecast.CURVE_POINTS`; empty: unknown.
    """

    width: int
    depth: int
    parameters: int
    tokens: int
    loss: float
    se: float = 0.0
    spread: float = 0.0
    dof: float = math.inf
    log2_value: float = math.nan
    curve: tuple[float, ...] = ()

    @property
    def size(self) -> float:
        """The N of the law."""
        return model_size(self.width, self.depth)

    @property
    def flops(self) -> float:
        """6 x parameters x tokens, by which runs are ordered and compared."""
        return 6.0 * self.parameters * self.tokens


@dataclass(frozen=True)
class Law:
    """A fitted law, and fits to redrawn losses, which say how sure it is.

    Attributes:
        sizes: which of N and D are in it. Where they vary together, or only one does, N alone or D alone stands for
            both: L = E + A N^-α, with E and A those of this ladder's D.
        centre: K means of their logs; `theta` has the terms' logs there.
        theta: P of the fit: E, K logs of terms, K exponents.
        draws: DRAWS x P of the fits to redrawn losses.
        sigma: DRAWS standard deviations of one run's log loss around the law.
        misfit: the standard deviation of a cell around the law, beyond its noise, as a share of the loss.
        left: cells less parameters; 0: the misfit is unknown, and the interval is that of the noise alone.
        origin: means of log N and log D.
        direction: per unit of the first size's log, that of log N and log D; None where both are free.
    """

    sizes: tuple[str, ...]
    centre: Array
    theta: Array
    draws: Array
    sigma: Array
    misfit: float
    left: int
    origin: Array
    direction: Array | None

    @property
    def values(self) -> dict[str, float]:
        """E, A, alpha, B, beta, those that are in it."""
        count = len(self.sizes)
        terms, exponents = self.theta[1 : 1 + count], self.theta[1 + count :]
        found = {"E": float(self.theta[0])}
        for name, log, exponent, middle in zip(self.sizes, terms, exponents, self.centre, strict=True):
            letters = ("A", "alpha") if name == "N" else ("B", "beta")
            found |= dict(zip(letters, (math.exp(log + exponent * middle), float(exponent)), strict=True))
        return found

    @property
    def at_bounds(self) -> bool:
        """Whether E is 0, or an exponent as small or as large as is allowed."""
        return bool(self.theta[0] == 0 or np.isin(self.theta[1 + len(self.sizes) :], _EXPONENTS).any())

    def predict(self, size: float, tokens: float, widen: float = 1.0) -> tuple[float, float, float]:
        """The loss of one run, and the ends of its 95 % prediction interval, `widen` times as far away.

        Raises UserError where the ladder says nothing of such a size.
        """
        place = np.log([size, tokens])
        if self.direction is not None:
            on = self.origin + self.direction * ((place - self.origin) @ self.direction)
            if np.abs(on - place).max() > _ON_THE_LINE:
                raise UserError(self._off(size, tokens, on))
        x = place[["ND".index(name) for name in self.sizes]] - self.centre
        middle = float(np.log(_losses(self.theta[None], x[None]))[0, 0])
        chance = np.random.default_rng(1).standard_normal(len(self.draws))
        drawn = np.log(_losses(self.draws, x[None]))[:, 0] + self.sigma * chance
        low, high = np.quantile(drawn, [0.025, 0.975])
        ends = middle - widen * max(0.0, middle - low), middle + widen * max(0.0, high - middle)
        return math.exp(middle), math.exp(ends[0]), math.exp(ends[1])

    def _off(self, size: float, tokens: float, on: Array) -> str:
        """Why nothing is known of a size off the ladder's line; `on` is the nearest place on it, in logs."""
        assert self.direction is not None
        for place, what in enumerate(("N (12 depth width²)", "tokens")):
            if abs(self.direction[place]) < 1e-3:
                own, theirs = (size, tokens)[place], math.exp(self.origin[place])
                return (
                    f"{what}: {own:,.0f} in the target, {theirs:,.0f} in all of the ladder; add runs in which it varies"
                )
        near = f"N {math.exp(on[0]):,.0f} with {math.exp(on[1]):,.0f} tokens"
        return (
            f"N (12 depth width²) and tokens grow only together in the ladder, which says nothing of N {size:,.0f} "
            f"with {tokens:,.0f} tokens; nearest is {near}: add runs in which they grow apart"
        )


def fit(cells: Sequence[Cell], *, exact: bool = False) -> Law:
    """Fit the law by Huber's loss on log losses, from a grid of starts.

    The interval is a parametric bootstrap: every cell's loss is redrawn by its noise between seeds, and by the misfit
    common to all that the residuals leave beyond the noise; the variance of a draw is that of an estimate with these
    degrees of freedom (Welch and Satterthwaite). `exact` allows as many cells as parameters. Raises UserError where
    cells are too few, of one size, or do not fall.
    """
    logs_C2 = np.log([[cell.size, cell.tokens] for cell in cells])
    y_C = np.log([cell.loss for cell in cells])
    origin = logs_C2.mean(axis=0)
    _, spans, axes = np.linalg.svd(logs_C2 - origin, full_matrices=False)
    if spans[0] < _ON_THE_LINE:
        raise UserError("the ladder has one size: neither width or depth nor tokens vary; add sizes")
    both = len(spans) > 1 and spans[1] > _ON_THE_LINE * math.sqrt(len(cells))
    direction = None if both else axes[0]
    sizes = ("N", "D") if both else ("N",) if abs(axes[0][0]) > 1e-3 else ("D",)
    needed = 1 + 2 * len(sizes)
    if len(cells) < needed + (not exact):
        law = " + ".join(["E", *({"N": "A N^-α", "D": "B D^-β"}[name] for name in sizes)])
        raise UserError(
            f"the ladder has {len(cells)} sizes, but {law} has {needed} parameters: expected more than that"
        )
    x_CK = logs_C2[:, ["ND".index(name) for name in sizes]]
    centre = x_CK.mean(axis=0)
    x_CK = x_CK - centre
    slopes = np.linalg.lstsq(np.column_stack([x_CK, np.ones(len(cells))]), y_C, rcond=None)[0][:-1]
    for name, slope in zip(sizes, slopes, strict=True):
        if slope >= 0:
            what = {"N": "the model's size", "D": "tokens"}[name]
            raise UserError(
                f"losses rise with {what} in this ladder, and the law only falls: train longer, or tune better"
            )
    known_C = np.array([cell.se / cell.loss for cell in cells])
    delta = max(_HUBER, 2 * float(known_C.mean()))
    starts = _starts(y_C, len(sizes))
    found = _solve(x_CK, np.tile(y_C, (len(starts), 1)), starts, delta)
    theta = found[np.argmin(_cost(np.log(_losses(found, x_CK)) - y_C, delta))]
    fitted_C = np.log(_losses(theta[None], x_CK))[0]
    left, noise = len(cells) - needed, float((known_C**2).mean())
    misfit = max(0.0, float(((fitted_C - y_C) ** 2).sum()) / left - noise) if left else 0.0
    errors = noise**2 / cells[0].dof + (misfit**2 / left if left else 0.0)
    chance, dof = np.random.default_rng(0), (noise + misfit) ** 2 / errors if errors else math.inf
    scale_S = np.sqrt(dof / chance.chisquare(dof, DRAWS)) if math.isfinite(dof) else np.ones(DRAWS)
    errors_SC = scale_S[:, None] * np.sqrt(known_C**2 + misfit) * chance.standard_normal((DRAWS, len(cells)))
    draws = _solve(x_CK, fitted_C + errors_SC, np.tile(theta, (DRAWS, 1)), delta)
    sigma = scale_S * math.sqrt(float(np.mean([cell.spread / cell.loss for cell in cells])) ** 2 + misfit)
    return Law(sizes, centre, theta, draws, sigma, math.sqrt(misfit), left, origin, direction)


def _starts(y_C: Array, count: int) -> Array:
    """A grid: E as a share of the smallest loss, and exponents; the terms share the rest of the mean loss."""
    smallest, mean = math.exp(y_C.min()), math.exp(y_C.mean())
    grid = product(smallest * np.array([0.3, 0.6, 0.9]), *[(0.1, 0.3, 0.7)] * count)
    return np.array([[E, *[math.log((mean - E) / count)] * count, *exponents] for E, *exponents in grid])


def _losses(theta_SP: Array, x_CK: Array) -> Array:
    """The S x C losses of S laws."""
    count = x_CK.shape[1]
    terms = np.exp(theta_SP[:, None, 1 : 1 + count] - theta_SP[:, None, 1 + count :] * x_CK)
    return theta_SP[:, :1] + terms.sum(axis=2)


def _cost(residuals: Array, delta: float) -> Array:
    size = np.abs(residuals)
    return np.where(size <= delta, size**2 / 2, delta * (size - delta / 2)).sum(axis=1)


def _solve(x_CK: Array, y_SC: Array, theta_SP: Array, delta: float, rounds: int = 100) -> Array:
    """Levenberg and Marquardt's method for S problems at once, within the bounds (scipy solves one at a time)."""
    count = x_CK.shape[1]
    low, high = np.full_like(theta_SP, -25.0), np.full_like(theta_SP, 25.0)
    low[:, 0], high[:, 0] = 0.0, np.exp(y_SC.min(axis=1))
    low[:, 1 + count :], high[:, 1 + count :] = _EXPONENTS
    theta_SP, damping = np.clip(theta_SP, low, high), np.full(len(theta_SP), 1e-3)
    cost = _cost(np.log(_losses(theta_SP, x_CK)) - y_SC, delta)
    for _ in range(rounds):
        terms = np.exp(theta_SP[:, None, 1 : 1 + count] - theta_SP[:, None, 1 + count :] * x_CK)
        loss = theta_SP[:, None, :1] + terms.sum(axis=2, keepdims=True)
        jacobian = np.concatenate([np.ones_like(loss), terms, -x_CK * terms], axis=2) / loss
        residual = np.log(loss[..., 0]) - y_SC
        weights = np.minimum(1.0, delta / np.maximum(np.abs(residual), 1e-30))
        gradient = np.einsum("scp,sc->sp", jacobian, weights * residual)
        held = ((theta_SP <= low) & (gradient > 0)) | ((theta_SP >= high) & (gradient < 0))
        jacobian = np.where(held[:, None], 0.0, jacobian)
        normal = np.einsum("scp,sc,scq->spq", jacobian, weights, jacobian)
        scaled = damping[:, None] * np.einsum("spp->sp", normal) + 1e-14
        step = np.linalg.solve(
            normal + scaled[:, None] * np.eye(theta_SP.shape[1]), np.where(held, 0, gradient)[..., None]
        )
        trial = np.clip(theta_SP - step[..., 0], low, high)
        new = _cost(np.log(_losses(trial, x_CK)) - y_SC, delta)
        better = new < cost
        moved = np.abs(trial - theta_SP).max()
        theta_SP = np.where(better[:, None], trial, theta_SP)
        cost = np.where(better, new, cost)
        damping = np.clip(np.where(better, damping / 10, damping * 4), 1e-12, 1e12)
        if moved < 1e-6:
            break
    return theta_SP
