"""L(N, D) = E + A N^-α + B D^-β (Hoffmann et al. 2022, approach 3), fitted to a ladder of small models.

Shapes: C cells of the ladder, K sizes that vary (N, D or one of them), P = 1 + 2K parameters.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.optimize import least_squares

from mup_lightning.errors import UserError
from mup_lightning.studies.scaling import student_t
from mup_lightning.studies.transfer.curves import Array, Noise
from mup_lightning.studies.transfer.estimate import Regression, regress

_HUBER = 1e-3  # residual of a log loss, beyond which a cell counts linearly (Hoffmann et al.); at least twice the noise
_EXPONENTS = 0.02, 2.0  # bounds of α and β

_AT_BOUND = 1e-3
"""How close E, in nats, or an exponent is to a bound that holds it: the solver comes near, and never there."""

_ON_THE_LINE = 0.1
"""How far the target's log N and log D may be from the line that they keep to in a ladder of one direction."""


def model_size(width: int, depth: int) -> float:
    """The N of the law, 12 depth width²: the matrices inside blocks but for a factor that all sizes share.

    Without embeddings (Kaplan et al. 2020): small models have most of their parameters there, which buy little.
    """
    return 12.0 * depth * width**2


@dataclass(frozen=True)
class Cell:
    """The loss of one model size and number of tokens (D) at its best base value."""

    width: int
    depth: int
    parameters: int  # of the whole model
    tokens: int
    loss: float  # mean over the seeds, nats per token
    se: float = 0.0  # its standard error, nats; 0: unknown
    spread: float = 0.0  # standard deviation between seeds, nats; 0: unknown
    dof: float = math.inf  # degrees of freedom of both
    log2_value: float = math.nan  # log2 of the best value tried
    curve: tuple[float, ...] = ()  # training losses along the run, see `config.forecast.CURVE_POINTS`; empty: unknown

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
    """A fitted law."""

    # Which of N and D are in it. Where they vary together, or only one does, N alone or D alone stands for
    # both: L = E + A N^-α, with E and A those of this ladder's D.
    sizes: tuple[str, ...]
    centre: Array  # K means of their logs; `theta` has the terms' logs there
    theta: Array  # P of the fit: E, K logs of terms, K exponents
    around: Regression  # the log losses as a linear model of `theta`, which says how sure it is
    spread: float  # variance of one run's log loss between seeds
    origin: Array  # means of log N and log D
    direction: Array | None  # per unit of the first size's log, that of log N and log D; None where both are free

    @property
    def values(self) -> dict[str, float]:
        """E, A, alpha, B, beta, those that are in it."""
        floor, *rest = self.theta.tolist()
        found, count = {"E": floor}, len(self.sizes)
        for name, log, exponent, middle in zip(self.sizes, rest[:count], rest[count:], self.centre, strict=True):
            factor, power = ("A", "alpha") if name == "N" else ("B", "beta")
            found |= {factor: math.exp(log + exponent * middle), power: exponent}
        return found

    @property
    def at_bounds(self) -> bool:
        """Whether E is 0, or an exponent as small or as large as is allowed."""
        exponents = self.theta[1 + len(self.sizes) :, None]
        return bool(self.theta[0] < _AT_BOUND or (np.abs(exponents - _EXPONENTS) < _AT_BOUND).any())

    def predict(self, size: float, tokens: float, widen: float = 1.0) -> tuple[float, float, float]:
        """One run's loss and the ends of its 95 % interval, `widen` times as far away. UserError: off the ladder."""
        place = np.log([size, tokens])
        if self.direction is not None:
            on = self.origin + self.direction * ((place - self.origin) @ self.direction)
            if np.abs(on - place).max() > _ON_THE_LINE:
                raise UserError(self._off(size, tokens, on))
        (middle,), (slope_P,) = _logs(self.theta, place[None, ["ND".index(name) for name in self.sizes]] - self.centre)
        se, dof = self.around.error(slope_P, 1.0, self.spread)
        half = widen * student_t(dof) * se
        return math.exp(middle), math.exp(middle - half), math.exp(middle + half)

    def _off(self, size: float, tokens: float, on: Array) -> str:
        """Why nothing is known of a size off the ladder's line; `on` is the nearest place on it, in logs."""
        assert self.direction is not None
        sides = zip(("N (12 depth width²)", "tokens"), (size, tokens), np.exp(self.origin), self.direction, strict=True)
        for what, own, theirs, share in sides:
            if abs(share) < 1e-3:
                known = f"{own:,.0f} in the target, {theirs:,.0f} in all of the ladder"
                return f"{what}: {known}; add runs in which it varies"
        near = f"N {math.exp(on[0]):,.0f} with {math.exp(on[1]):,.0f} tokens"
        return (
            f"N (12 depth width²) and tokens grow only together in the ladder, which says nothing of N {size:,.0f} "
            f"with {tokens:,.0f} tokens; nearest is {near}: add runs in which they grow apart"
        )


def fit(cells: Sequence[Cell], *, exact: bool = False) -> Law:
    """Fit the law by Huber's loss on log losses, from a grid of starts; how sure it is: see `estimate.regress`.

    `exact` allows as many cells as parameters. Raises UserError where cells are too few, of one size, or do not fall.
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
        known = f"the ladder has {len(cells)} sizes, but {law} has {needed} parameters"
        raise UserError(f"{known}: expected more than that")
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
    known_C, count = np.array([(cell.se / cell.loss) ** 2 for cell in cells]), len(sizes)
    smallest, mean = math.exp(y_C.min()), math.exp(y_C.mean())
    low = [0.0, *[-25.0] * count, *[_EXPONENTS[0]] * count]
    high = [smallest, *[25.0] * count, *[_EXPONENTS[1]] * count]
    found = [
        least_squares(
            lambda theta: _logs(theta, x_CK)[0] - y_C,
            # The terms share what E, a share of the smallest loss, leaves of the mean loss.
            [share * smallest, *[math.log((mean - share * smallest) / count)] * count, *[exponent] * count],
            lambda theta: _logs(theta, x_CK)[1],
            (low, high),
            loss="huber",
            f_scale=max(_HUBER, 2 * float(np.sqrt(known_C).mean())),
            x_scale="jac",
            **dict.fromkeys(("ftol", "xtol", "gtol"), 1e-12),
        )
        for share, exponent in product((0.3, 0.9), (0.1, 0.3, 0.7))
    ]
    theta = min(found, key=lambda one: one.cost).x
    fitted_C, slopes_CP = _logs(theta, x_CK)
    around = regress(y_C - fitted_C, known_C, slopes_CP, Noise(0.0, 0.0, cells[0].dof))
    spread = float(np.mean([cell.spread / cell.loss for cell in cells])) ** 2
    return Law(sizes, centre, theta, around, spread, origin, direction)


def _logs(theta: Array, x_CK: Array) -> tuple[Array, Array]:
    """The C log losses of a law, and their C x P derivatives."""
    count = x_CK.shape[1]
    terms_CK = np.exp(theta[1 : 1 + count] - theta[1 + count :] * x_CK)
    losses_C = theta[0] + terms_CK.sum(axis=1)
    slopes_CP = np.column_stack([np.ones(len(x_CK)), terms_CK, -x_CK * terms_CK])
    return np.log(losses_C), slopes_CP / losses_C[:, None]
