"""One plain sentence: does the best value of the small model serve the large one?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mup_lightning.errors import UserError
from mup_lightning.studies.fit import student_t
from mup_lightning.studies.transfer.estimate import Noise
from mup_lightning.studies.transfer.transfer_optimum import Optimum
from mup_lightning.studies.transfer.transfer_regret import Regret
from mup_lightning.studies.transfer.transfer_slope import Slope

TRANSFERS, DRIFTS, FAILS, UNCLEAR = "transfers", "drifts", "does not transfer", "cannot tell"
"""What a verdict begins with. It drifts: the optimum moves, but what is tuned small still costs next to nothing."""


ASSUMED_NOISE = 0.01
"""Nats between seeds that nothing rules out where there is one seed: a regret that this could make proves nothing."""


@dataclass(frozen=True)
class Tolerance:
    """Where transfer ends.

    Attributes:
        slope: powers of two of the value for each doubling of the size, up or down.
        regret: nats at the largest size.
    """

    slope: float = 0.15
    regret: float = 0.02

    def __post_init__(self) -> None:
        """Refuse what nothing could be held against.

        Raises:
            UserError: naming the option, the value and what was expected.
        """
        for option in ("slope", "regret"):
            if not 0 < getattr(self, option) < math.inf:
                raise UserError(f"--{option}-tolerance is {getattr(self, option)}; expected a number above 0")


@dataclass(frozen=True)
class Evidence:
    """All that a verdict looks at.

    Attributes:
        axis: what grows.
        sizes: small to large.
        optima: of the sizes that have one.
        slope: None: fewer than two optima.
        regrets: of every size.
        noise: of the losses.
    """

    axis: str
    sizes: Sequence[str]
    optima: Sequence[Optimum]
    slope: Slope | None
    regrets: Sequence[Regret]
    noise: Noise


def judge(evidence: Evidence, tolerance: Tolerance) -> str:
    """The sentence. It begins with one of the four words above."""
    numbers = f"{_numbers(evidence)}{_luck(evidence, tolerance)}"
    if against := _against(evidence, tolerance):
        return f"{FAILS}: {', and '.join(against)}; {_numbers(evidence)}"
    drift = _drift(evidence, tolerance)
    if doubts := _doubts(evidence, tolerance, drifts=bool(drift)):
        return f"{UNCLEAR}: {'; '.join([drift, *doubts] if drift else doubts)}; {numbers}"
    if drift and evidence.regrets[-1].least:
        cost = f"what is tuned at the smallest size costs is unknown: at {evidence.axis} {evidence.sizes[-1]}"
        return f"{UNCLEAR}: {drift}; what {cost} the best value is the last one tried, so widen the grid; {numbers}"
    if drift:
        return f"{DRIFTS}: {drift}, but what is tuned at the smallest size costs little at the largest; {numbers}"
    return f"{TRANSFERS}: {numbers}"


def _against(evidence: Evidence, tolerance: Tolerance) -> list[str]:
    """What shows that it fails, each beyond doubt."""
    largest, last = evidence.regrets[-1], evidence.sizes[-1]
    drift = _drift(evidence, tolerance)
    found = []
    if last not in {o.size for o in evidence.optima}:
        found.append(f"every value that was tried diverged or was stopped at {evidence.axis} {last}")
    elif _coin_toss(evidence, tolerance):
        pass
    elif largest.unlimited:
        how = _end(largest)
        found.append(f"what is best at {evidence.axis} {evidence.optima[0].size} {how} at {evidence.axis} {last}")
    elif largest.nats is not None and largest.nats - largest.margin > tolerance.regret:
        if not drift and _noise_could_make(evidence, tolerance):
            return []
        found.append(
            f"what is best at {evidence.axis} {evidence.optima[0].size} costs {_cost(largest)} "
            f"at {evidence.axis} {last}"
        )
        if evidence.noise.deviation is None and not drift:
            found[-1] += f" (unless seeds differ by {_explaining(largest, tolerance):.3f} or more)"
    return [drift, *found] if found and drift else found


def _coin_toss(evidence: Evidence, tolerance: Tolerance) -> str:
    """In words, where a value that ties with the best one at the smallest size would cost little; else empty.

    Which of the two is tuned is chance, and so is the regret: it proves no failure.
    """
    largest = evidence.regrets[-1]
    dear = largest.unlimited or (largest.nats is not None and largest.nats - largest.margin > tolerance.regret)
    other = min(largest.ties, key=lambda tie: tie.nats, default=None)
    if not dear or other is None or other.nats > tolerance.regret:
        return ""
    best = evidence.optima[0]
    within = "" if evidence.noise.deviation is None else ", within the noise"
    fate = f"costs {_cost(largest)}" if largest.nats is not None else _end(largest)
    least = "at least " if largest.least else ""
    return (
        f"2^{best.grid:g} and 2^{other.value:g} are equally good at {evidence.axis} {best.size}{within}; at "
        f"{evidence.axis} {evidence.sizes[-1]} the first {fate} and the second costs {least}{other.nats:.3f} nats: "
        f"more seeds at {best.size}"
    )


def _luck(evidence: Evidence, tolerance: Tolerance) -> str:
    """In words, where the regret is small, but that of a value that ties at the smallest size is not; else empty."""
    largest = evidence.regrets[-1]
    dearest = max(largest.ties, key=lambda tie: tie.nats - tie.margin, default=None)
    small = largest.nats is not None and largest.nats <= tolerance.regret
    if not small or dearest is None or dearest.nats - dearest.margin <= tolerance.regret:
        return ""
    return f" (2^{dearest.value:g}, which ties at {evidence.optima[0].size}, would cost {dearest.nats:.3f})"


def _noise_could_make(evidence: Evidence, tolerance: Tolerance) -> bool:
    """Whether the noise is unknown, and an ordinary one would leave the regret within the tolerance."""
    largest = evidence.regrets[-1]
    return evidence.noise.deviation is None and _explaining(largest, tolerance) < ASSUMED_NOISE


def _explaining(regret: Regret, tolerance: Tolerance) -> float:
    """The standard deviation between seeds at which one seed's regret would no longer stand above the tolerance."""
    return ((regret.nats or 0.0) - tolerance.regret) / (student_t(math.inf) * math.sqrt(2))


def _end(regret: Regret) -> str:
    return "diverges" if regret.why == "diverged" else "was stopped as hopeless"


def _cost(regret: Regret) -> str:
    return f"{'at least ' if regret.least else ''}{regret.nats:.3f} nats"


def _drift(evidence: Evidence, tolerance: Tolerance) -> str:
    """In words, where the optimum moves faster than is tolerated, and surely moves; else empty."""
    slope = evidence.slope
    if slope is None or slope.low is None or slope.high is None:
        return ""
    falls = slope.slope < -tolerance.slope and slope.high < 0 and slope.bound in ("", "at most")
    rises = slope.slope > tolerance.slope and slope.low > 0 and slope.bound in ("", "at least")
    if not (falls or rises):
        return ""
    least = "at least " if slope.bound else ""
    return (
        f"the best value {'falls' if falls else 'rises'} by {least}{abs(slope.slope):.2f} powers of two for each "
        f"doubling of the {_thing(evidence.axis)}"
    )


def _doubts(evidence: Evidence, tolerance: Tolerance, *, drifts: bool) -> list[str]:
    """What keeps it from a verdict."""
    slope, largest = evidence.slope, evidence.regrets[-1]
    if slope is None:
        have = "only one size" if len(evidence.sizes) < 2 else "fewer than two sizes with a finite loss"
        return [f"there is {have}" if len(evidence.sizes) < 2 else f"there are {have}"]
    found = []
    edges = [o.size for o in evidence.optima if o.edge]
    if edges and not drifts:
        found.append(f"at {evidence.axis} {', '.join(edges)} the best value is the last one tried, so widen the grid")
    lost = [size for size in evidence.sizes if size not in {o.size for o in evidence.optima}]
    if lost:
        found.append(f"nothing trained at {evidence.axis} {', '.join(lost)}")
    if largest.why == "missing":
        found.append(f"the best value of the smallest size was not tried at {evidence.axis} {evidence.sizes[-1]}")
    elif coin := _coin_toss(evidence, tolerance):
        found.append(coin)
    elif largest.nats is not None and largest.nats > tolerance.regret:
        within = "one seed does not tell whether by noise" if evidence.noise.deviation is None else "within the noise"
        found.append(f"the regret is above {tolerance.regret:g}, but {within}: more seeds")
    small = largest.nats is not None and largest.nats <= tolerance.regret
    for regret in evidence.regrets[:-1] if small else ():
        if regret.unlimited or (regret.nats is not None and regret.nats - regret.margin > tolerance.regret):
            cost = regret.why if regret.nats is None else f"{regret.nats:.3f} nats"
            found.append(f"at {evidence.axis} {regret.size} the regret is {cost}, although not at the largest")
            break
    if not drifts and not edges:
        if slope.low is None or slope.high is None:
            found.append("two sizes of one seed do not tell how sure the slope is: more sizes or seeds")
        elif max(-slope.low, slope.high) > 2 * tolerance.slope or abs(slope.slope) > tolerance.slope:
            found.append("the slope is too uncertain: more sizes, seeds or steps")
    return found


def _numbers(evidence: Evidence) -> str:
    """Slope, regret and noise in a few words."""
    parts = []
    slope, largest = evidence.slope, evidence.regrets[-1]
    if slope is not None:
        interval = "" if slope.low is None or slope.high is None else f" [{slope.low:+z.2f}, {slope.high:+z.2f}]"
        bound = {"at most": "at most ", "at least": "at least "}.get(slope.bound, "")
        parts.append(f"slope {bound}{slope.slope:+z.2f}{interval}")
    if largest.nats is not None:
        parts.append(f"regret {_cost(largest)}")
    elif largest.unlimited:
        parts.append("regret without limit")
    parts.append(f"noise {evidence.noise}")
    return ", ".join(parts)


def _thing(axis: str) -> str:
    return {"both": "width and depth"}.get(axis, axis)
