"""What it costs to tune small: the loss at every size with the smallest size's best value, on the grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mup_lightning.report.transfer_curves import Curve
from mup_lightning.report.transfer_noise import Noise
from mup_lightning.report.transfer_optimum import Optimum
from mup_lightning.student import student_t


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
        tie: another value that is as good at the smallest size, within the noise, and costs less here than what is best
            there: its log2, and what it costs. Of several the cheapest; None: there is none.
    """

    size: str
    nats: float | None
    why: str = ""
    margin: float = 0.0
    least: bool = False
    tie: tuple[float, float] | None = None

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
            result.append(Regret(curve.size, None, why, tie=_tie(curve, optima[0], by_size.get(curve.size))))
            continue
        best = by_size[curve.size]
        nats = curve.means[tuned] - best.loss
        margin = student_t(noise.freedom) * curve.error_between(tuned, best.grid)
        result.append(Regret(curve.size, nats, margin=margin, least=best.edge != 0, tie=_tie(curve, optima[0], best)))
    return result


def _tie(curve: Curve, smallest: Optimum, best: Optimum | None) -> tuple[float, float] | None:
    """The cheapest at this size of the values that tie at the smallest one, if that is not the best of them there."""
    known = {value: curve.means[value] for value in smallest.plateau if value in curve.means}
    if best is None or not known:
        return None
    cheapest = min(known, key=lambda value: known[value])
    return None if cheapest == smallest.grid else (cheapest, known[cheapest] - best.loss)
