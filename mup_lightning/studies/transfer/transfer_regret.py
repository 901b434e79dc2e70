"""What it costs to tune small: the loss at every size with the smallest size's best value, on the grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mup_lightning.studies.fit import student_t
from mup_lightning.studies.transfer.estimate import Noise
from mup_lightning.studies.transfer.transfer_curves import Curve
from mup_lightning.studies.transfer.transfer_optimum import Optimum


@dataclass(frozen=True)
class Tie:
    """Another value that might as well have been tuned.

    Attributes:
        value: its log2.
        nats: what it costs.
        margin: by how much this may be off through the noise.
    """

    value: float
    nats: float
    margin: float


@dataclass(frozen=True)
class Regret:
    """At one size.

    Attributes:
        size: as the table has it.
        nats: mean loss with the value tuned at the smallest size minus the lowest mean loss; None: there is no loss.
        why: that there is none: "diverged", "stopped" (as hopeless), "missing" (not run) or "untuned" (nothing trained
            at the smallest size). Empty where there is one. The first two mean that the regret is without limit.
        margin: by how much `nats` may be off through the noise; 0 where the noise is unknown.
        least: the best value of this size is the last one tried: what lies beyond may be better, and the regret larger.
        ties: what else is as good at the smallest size, within the noise, and was not lost here.
    """

    size: str
    nats: float | None
    why: str = ""
    margin: float = 0.0
    least: bool = False
    ties: tuple[Tie, ...] = ()

    @property
    def unlimited(self) -> bool:
        """Whether the transferred value fails outright."""
        return self.why in ("diverged", "stopped")


def regrets(curves: Sequence[Curve], optima: Sequence[Optimum], noise: Noise) -> list[Regret]:
    """The regret of every size.

    Args:
        curves: of a group, small to large.
        optima: of those that have one; the first is what is tuned on.
        noise: of the group.
    """
    if not optima:
        return [Regret(curve.size, None, "missing") for curve in curves]
    if optima[0].size != curves[0].size:
        return [Regret(curve.size, None, "untuned") for curve in curves]
    tuned, by_size = optima[0].grid, {o.size: o for o in optima}
    result = []
    for curve in curves:
        why = curve.lost(tuned)
        if why or curve.size not in by_size:
            # A size where everything is lost has lost the tuned value too, if it was run.
            ties = _ties(curve, optima[0], by_size[curve.size], noise) if curve.size in by_size else ()
            result.append(Regret(curve.size, None, why, ties=ties))
            continue
        best = by_size[curve.size]
        own = _cost(curve, tuned, best, noise)
        ties = _ties(curve, optima[0], best, noise)
        result.append(Regret(curve.size, own.nats, margin=own.margin, least=best.edge != 0, ties=ties))
    return result


def _ties(curve: Curve, smallest: Optimum, best: Optimum, noise: Noise) -> tuple[Tie, ...]:
    others = [value for value in smallest.plateau if value != smallest.grid and value in curve.means]
    return tuple(_cost(curve, value, best, noise) for value in others)


def _cost(curve: Curve, value: float, best: Optimum, noise: Noise) -> Tie:
    margin = student_t(noise.freedom) * curve.error_between(value, best.grid)
    return Tie(value, curve.means[value] - best.loss, margin)
