"""Law-fit error, robustness and asymptotic penalty, beside slope and regret: docs/method/transfer.md defines them.

The names are those of Kalra & Barkeshli 2026 (arXiv 2605.21486), the definitions ours.
"""

import math
from collections.abc import Sequence

import numpy as np

from mup_lightning.studies.transfer.curves import Curve
from mup_lightning.studies.transfer.verdict import Group


def law_fit_error(found: Group) -> float | None:
    """RMS distance of the optima, powers of two, from the power law in size that fits them; None below three sizes."""
    if len(found.optima) < 3:
        return None
    x, y = np.array([(best.position, best.value) for best in found.optima]).T
    return float(np.sqrt(np.mean((y - np.polyval(np.polyfit(x, y, 1), x)) ** 2)))


def robustness(found: Group, curve: Curve) -> float | None:
    """Nats lost at a size where the best value tried is off by one power of two, the mean of either way.

    Infinite where such a value is lost; None where it was not tried.
    """
    if (best := found.at(curve.size)) is None:
        return None
    below, above = (loss_at(curve, best.best_value + side) for side in (-1.0, 1.0))
    return None if below is None or above is None else (below + above) / 2 - best.loss


def asymptotic_penalty(found: Group, family: Sequence[Group]) -> float | None:
    """Nats at the largest size with the value that the smaller ones predict, above the best that any of a family has.

    The prediction is the smaller sizes' optima continued by a power law; of a single one, its optimum as it is.
    Infinite where the predicted value is lost; None where it lies outside of what was tried.
    """
    curve, smaller = found.curves[-1], [best for best in found.optima if best.size != found.curves[-1].size]
    if not smaller:
        return None
    x, y = np.array([(best.position, best.value) for best in smaller]).T
    loss = loss_at(curve, float(np.polyval(np.polyfit(x, y, min(1, len(x) - 1)), curve.position)))
    lowest = min((best.loss for one in family if (best := one.at(curve.size))), default=math.inf)
    # A parabola between the values tried may fall below all of them: no credit is given for that.
    return None if loss is None else max(loss, min(curve.trained.values(), default=math.inf)) - lowest


def loss_at(curve: Curve, value: float) -> float | None:
    """A size's mean loss at log2 of a base value: by a parabola through the three nearest that were tried.

    Infinite where the value, or one next to it, is lost; None outside of what was tried.
    """
    grid, near = curve.values, np.isclose(curve.values, value)
    if near.any():
        return float(curve.means[near][0])
    if not grid[0] < value < grid[-1]:
        return None
    above = int(np.searchsorted(grid, value))
    if not np.isfinite(curve.means[above - 1 : above + 1]).all():
        return math.inf
    trained = np.isfinite(curve.means)
    three = sorted(np.flatnonzero(trained), key=lambda i: abs(grid[i] - value))[:3]
    return float(np.polyval(np.polyfit(grid[three], curve.means[three], len(three) - 1), value))
