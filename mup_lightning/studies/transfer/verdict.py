"""One plain sentence: does the best value of the small model serve the large one?"""

import math
from dataclasses import dataclass

from mup_lightning import tables
from mup_lightning.studies.fit import student_t
from mup_lightning.studies.transfer.drift import Regret, Slope
from mup_lightning.studies.transfer.estimate import Curve, Noise, Optimum

TRANSFERS, DRIFTS, FAILS, UNCLEAR = "transfers", "drifts", "does not transfer", "cannot tell"
"""How a verdict begins. Drifts: the optimum moves, but the value tuned small still costs next to nothing."""

_ASSUMED_NOISE = 0.01
"""Noise between seeds, nats, that cannot be ruled out with one seed: a regret it could explain proves nothing."""


@dataclass(frozen=True)
class Evidence:
    """What is known about one group.

    Attributes:
        axis: what grows: width, depth, both, or any other word.
        curves: losses of every size, small to large.
        noise: noise of the losses.
        optima: optimum of each size where anything trained.
        slope: slope of the optima; None where there are fewer than two.
        regrets: regret of every size.
    """

    axis: str
    curves: tuple[Curve, ...]
    noise: Noise
    optima: tuple[Optimum, ...]
    slope: Slope | None
    regrets: tuple[Regret, ...]


def judge(found: Evidence, slope_tolerance: float, regret_tolerance: float) -> str:
    """The verdict: one of the four words above, the reasons, and the numbers they rest on.

    Args:
        found: what is known.
        slope_tolerance: powers of two of the value per doubling of the size, up or down.
        regret_tolerance: nats at the largest size.
    """
    facts, largest, last = _facts(found), found.regrets[-1], f"{found.axis} {found.regrets[-1].size}"
    drift = _drift(found, slope_tolerance)
    failures = _failures(found, regret_tolerance, drifts=bool(drift))
    if failures:
        return f"{FAILS}: {', and '.join(filter(None, [drift, *failures]))}; {facts}"
    facts += _expensive_tie(found, regret_tolerance)
    caveats = _caveats(found, slope_tolerance, regret_tolerance, drifts=bool(drift))
    if drift and not caveats and largest.at_least:
        caveats = [
            f"the cost of tuning at the smallest size is unknown: at {last} the best value is the last one tried, so "
            "widen the grid"
        ]
    if caveats:
        return f"{UNCLEAR}: {'; '.join(filter(None, [drift, *caveats]))}; {facts}"
    if drift:
        return f"{DRIFTS}: {drift}, but what is tuned at the smallest size costs little at the largest; {facts}"
    return f"{TRANSFERS}: {facts}"


def _drift(found: Evidence, tolerance: float) -> str:
    """A sentence where the optimum moves faster than is tolerated, and certainly moves; else empty."""
    slope = found.slope
    if slope is None or slope.low is None or slope.high is None:
        return ""
    falls = slope.slope < -tolerance and slope.high < 0 and slope.bound in ("", "at most")
    rises = slope.slope > tolerance and slope.low > 0 and slope.bound in ("", "at least")
    if not (falls or rises):
        return ""
    axis = "width and depth" if found.axis == "both" else found.axis
    return (
        f"the best value {'falls' if falls else 'rises'} by {'at least ' if slope.bound else ''}{abs(slope.slope):.2f} "
        f"powers of two for each doubling of the {axis}"
    )


def _failures(found: Evidence, tolerance: float, *, drifts: bool) -> list[str]:
    """What proves that the value does not transfer, drift aside."""
    largest, axis = found.regrets[-1], found.axis
    if largest.size not in {o.size for o in found.optima}:
        return [f"every value that was tried diverged or was stopped at {axis} {largest.size}"]
    if not _expensive(largest, tolerance) or _cheap_tie(found, tolerance):
        return []
    what = f"what is best at {axis} {found.optima[0].size} {_fate(largest)} at {axis} {largest.size}"
    if found.noise.residual is None and largest.nats is not None and not drifts:
        # The noise at which one seed's regret would no longer stand above the tolerance.
        explaining = (largest.nats - tolerance) / (student_t(math.inf) * math.sqrt(2))
        return [f"{what} (unless seeds differ by {explaining:.3f} or more)"] if explaining >= _ASSUMED_NOISE else []
    return [what]


def _expensive(regret: Regret, tolerance: float) -> bool:
    """Whether a regret exceeds the tolerance by more than the noise explains."""
    return regret.infinite or (regret.nats is not None and regret.nats - regret.ci_half_width > tolerance)


def _cheap(regret: Regret, tolerance: float) -> bool:
    return regret.nats is not None and regret.nats <= tolerance


def _cheap_tie(found: Evidence, tolerance: float) -> str:
    """A sentence where the regret is large, but that of a value that ties at the smallest size is small; else empty.

    Which of the two is tuned is chance, and so is the regret: it proves no failure.
    """
    largest = found.regrets[-1]
    other = min(largest.ties, key=lambda tie: tie.nats or 0.0, default=None)
    if not _expensive(largest, tolerance) or other is None or not _cheap(other, tolerance):
        return ""
    within = "" if found.noise.residual is None else ", within the noise"
    return (
        f"2^{largest.value:g} and 2^{other.value:g} are equally good at {found.axis} {found.optima[0].size}{within}; "
        f"at {found.axis} {largest.size} the first {_fate(largest)} and the second {_fate(other)}: more seeds at "
        f"{found.optima[0].size}"
    )


def _expensive_tie(found: Evidence, tolerance: float) -> str:
    """A remark where the regret is small, but that of a value that ties at the smallest size is not; else empty."""
    largest = found.regrets[-1]
    other = max(largest.ties, key=lambda tie: (tie.nats or 0.0) - tie.ci_half_width, default=None)
    if not _cheap(largest, tolerance) or other is None or not _expensive(other, tolerance):
        return ""
    return f" (2^{other.value:g}, which ties at {found.optima[0].size}, would cost {other.nats:.3f})"


def _caveats(found: Evidence, slope_tolerance: float, regret_tolerance: float, *, drifts: bool) -> list[str]:
    """What stands in the way of a verdict."""
    slope, largest, axis = found.slope, found.regrets[-1], found.axis
    if slope is None:
        one = len(found.regrets) < 2
        return ["there is only one size" if one else "there are fewer than two sizes with a finite loss"]
    caveats = []
    edges = [o.size for o in found.optima if o.edge]
    if edges and not drifts:
        caveats.append(f"at {axis} {', '.join(edges)} the best value is the last one tried, so widen the grid")
    if lost := [r.size for r in found.regrets if r.size not in {o.size for o in found.optima}]:
        caveats.append(f"nothing trained at {axis} {', '.join(lost)}")
    if largest.why == "missing":
        caveats.append(f"the best value of the smallest size was not tried at {axis} {largest.size}")
    elif tie := _cheap_tie(found, regret_tolerance):
        caveats.append(tie)
    elif largest.nats is not None and largest.nats > regret_tolerance:
        within = "one seed does not tell whether by noise" if found.noise.residual is None else "within the noise"
        caveats.append(f"the regret is above {regret_tolerance:g}, but {within}: more seeds")
    between = [r for r in found.regrets[:-1] if _expensive(r, regret_tolerance)]
    if between and _cheap(largest, regret_tolerance):
        cost = between[0].why or f"{between[0].nats:.3f} nats"
        caveats.append(f"at {axis} {between[0].size} the regret is {cost}, although not at the largest")
    if not drifts and not edges:
        if slope.low is None or slope.high is None:
            caveats.append("two sizes of one seed do not tell how sure the slope is: more sizes or seeds")
        elif max(-slope.low, slope.high) > 2 * slope_tolerance or abs(slope.slope) > slope_tolerance:
            caveats.append("the slope is too uncertain: more sizes, seeds or steps")
    return caveats


def _fate(regret: Regret) -> str:
    """What becomes of a value at a size, as a predicate."""
    if regret.nats is None:
        return "diverges" if regret.why == "diverged" else "was stopped as hopeless"
    return f"costs {_cost(regret)}"


def _cost(regret: Regret) -> str:
    return f"{'at least ' if regret.at_least else ''}{regret.nats:.3f} nats"


def _facts(found: Evidence) -> str:
    """Slope, regret and noise in a few words."""
    facts, largest, slope = [], found.regrets[-1], found.slope
    if slope is not None:
        bound = f"{slope.bound} " if slope.bound in ("at most", "at least") else ""
        facts.append(f"slope {bound}{with_interval(slope)}")
    if largest.nats is not None:
        facts.append(f"regret {_cost(largest)}")
    elif largest.infinite:
        facts.append("regret without limit")
    return ", ".join([*facts, f"noise {found.noise}"])


def with_interval(slope: Slope) -> str:
    """A slope with its interval where that is known, such as -0.05 [-0.16, +0.06]."""
    if slope.low is None or slope.high is None:
        return tables.signed(slope.slope)
    return tables.interval(slope.slope, slope.low, slope.high)


def bounded_slope(slope: Slope | None) -> str:
    """A slope with its interval, marked as a bound where optima lie at the edge."""
    if slope is None:
        return "-"
    return {"at most": "≤ ", "at least": "≥ ", "unknown": "? "}.get(slope.bound, "") + with_interval(slope)
