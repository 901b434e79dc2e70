"""From a table of losses to one sentence a group: does the best value of the small model serve the large one?"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import pandas as pd

from mup_lightning import tables
from mup_lightning.errors import UserError
from mup_lightning.studies.scaling import NAMES, student_t
from mup_lightning.studies.transfer.curves import Curve, Noise
from mup_lightning.studies.transfer.estimate import Optimum, Regret, Slope, optima_of, regret, slope_of
from mup_lightning.studies.transfer.losses import refuse_different

TRANSFERS, DRIFTS, FAILS, UNCLEAR = "transfers", "drifts", "does not transfer", "cannot tell"
"""How a verdict begins. Drifts: the optimum moves, but the value tuned small still costs next to nothing."""

SLOPE_TOLERANCE, REGRET_TOLERANCE = 0.15, 0.02

_ASSUMED_NOISE = 0.01
"""Noise between seeds, nats, that cannot be ruled out with one seed: a regret it could explain proves nothing."""

_NAMES = NAMES | {"muP k=1": "recipe, k = 1", "muP k>=2": "recipe, k ≥ 2"}


@dataclass
class Group:
    """Runs that differ only in size, base value and seed, and what follows from them."""

    axis: str  # what grows: width, depth, both, tokens (of the run), batch (tokens in a step), or any other word
    settings: dict[str, str]  # column -> text of what the runs share, the parametrization first
    # Of the runs that finished; None where they differ (over tokens or batch), or the table does not say.
    steps: int | None
    seeds: int  # largest number of seeds of any value
    curves: list[Curve]  # losses of every size, small to large; `regrets` likewise
    noise: Noise
    optima: list[Optimum]  # of each size where anything trained; `slope` is None where there are fewer than two
    regrets: list[Regret]
    slope: Slope | None
    family: tuple[tuple[str, str], ...]  # equal for groups that differ only in the parametrization
    verdict: str = ""  # one sentence, see `judge`

    @property
    def label(self) -> str:
        """The parametrization for people, with k where it has one."""
        name, k = self.settings["parametrization"], self.settings.get("branch_depth", "")
        return _NAMES.get(name, name) + {"": "", "1": ", k = 1"}.get(k, ", k ≥ 2")

    @property
    def title(self) -> str:
        """What is swept over what, and what else is fixed."""
        rest = {key: text for key, text in self.settings.items() if key not in ("parametrization", "branch_depth")}
        value, optimizer = rest.pop("value", "base value"), rest.pop("optimizer", "")
        layer_norm = rest.pop("layer_norm", rest.pop("model.layer_norm", ""))
        norm = {"True": "LayerNorm", "False": "no LayerNorm"}.get(layer_norm.capitalize(), "")
        steps = f"{self.steps} steps" if self.steps else ""
        said = (f"{key} {text.lower() if text in ('True', 'False') else text}" for key, text in rest.items())
        parts = [f"{value} over {self.axis}", optimizer, norm, *said, steps]
        return ", ".join(filter(None, parts))

    def at(self, size: str) -> Optimum | None:
        """The optimum of a size; None where nothing trained."""
        return next((best for best in self.optima if best.size == size), None)

    # Law-fit error, robustness and penalty: docs/method/transfer.md defines them. The names are those of Kalra &
    # Barkeshli 2026 (arXiv 2605.21486), the definitions ours; no verdict rests on them.

    @property
    def law_fit_error(self) -> float | None:
        """RMS distance of the optima, powers of two, from the power law in size that fits them; None below three."""
        if len(self.optima) < 3:
            return None
        x, y = np.array([(best.position, best.value) for best in self.optima]).T
        return float(np.sqrt(np.mean((y - np.polyval(np.polyfit(x, y, 1), x)) ** 2)))

    def robustness(self, curve: Curve) -> float | None:
        """Nats lost with a value off by one power of two, the mean of either way; None: one was not tried."""
        if (best := self.at(curve.size)) is None:
            return None
        below, above = (curve.at(best.best_value + side) for side in (-1.0, 1.0))
        return None if below is None or above is None else (below + above) / 2 - best.loss

    def penalty(self, family: Sequence["Group"]) -> float | None:
        """Nats at the largest size with the value that a power law of the smaller ones predicts, above a family's best.

        Infinite where the predicted value is lost; None where it lies outside of what was tried.
        """
        curve, smaller = self.curves[-1], [best for best in self.optima if best.size != self.curves[-1].size]
        if not smaller:
            return None
        x, y = np.array([(best.position, best.value) for best in smaller]).T
        loss = curve.at(float(np.polyval(np.polyfit(x, y, min(1, len(x) - 1)), curve.position)))
        lowest = min((best.loss for one in family if (best := one.at(curve.size))), default=math.inf)
        # A parabola between the values tried may fall below all of them: no credit is given for that.
        return None if loss is None else max(loss, min(curve.trained.values(), default=math.inf)) - lowest


def transfer(
    runs: pd.DataFrame,
    slope_tolerance: float = SLOPE_TOLERANCE,
    regret_tolerance: float = REGRET_TOLERANCE,
    noise: float | None = None,
) -> list[Group]:
    """Judge every group of a table, families together, and in a family SP before k ≥ 2 before k = 1.

    The tolerances still count as transfer: powers of two per doubling, and nats; `noise` is the standard deviation
    between seeds, nats, of groups of one seed. Raises UserError where runs cannot be compared.
    """
    runs = runs.assign(family=list(map(_family, runs["axis"], runs["settings"])))
    # Over the tokens runs are as long as they are, and over the batch they see as many tokens.
    lengths = runs.assign(tokens=(runs["steps"] * 2 ** runs["position"]).round())
    for axis, own in lengths.groupby("axis", sort=False):
        length = {"tokens": [], "batch": ["tokens"]}.get(str(axis), ["steps"])
        refuse_different(own, own["family"], ["corpus", *length])
    if runs["loss"].isna().all():
        raise UserError(f"no run has a loss, all {len(runs)} diverged; lower the base values")
    found = []
    for (axis, settings), own in runs.groupby(["axis", "settings"], sort=False):
        found_at, own_noise = optima_of(own, noise)
        curves, optima = [curve for curve, _ in found_at], [best for _, best in found_at if best]
        regrets = [regret(curve, found_at[0][1], best, own_noise.dof) for curve, best in found_at]
        done = own["steps"][own["loss"].notna()]
        steps = round(done.max()) if done.nunique() == 1 else None
        seeds = int(own.groupby(["position", "log2_value"]).size().max())
        measured = (curves, own_noise, optima, regrets, slope_of(optima, own_noise))
        found.append(Group(axis, dict(settings), steps, seeds, *measured, own["family"].iloc[0]))
        found[-1].verdict = judge(found[-1], slope_tolerance, regret_tolerance)
    if all(len(group.curves) < 2 for group in found):  # there are no two sizes, or columns tell all of them apart
        own = [f"{axis} {', '.join(of['size'].unique())}" for axis, of in runs.groupby("axis", sort=False)]
        settings = pd.DataFrame([dict(each) for each in runs["settings"]]).fillna("")
        differing = [key for key in settings if settings[key].nunique() > 1]
        why = f"; runs that differ in {' or '.join(differing)} are not compared" if differing else ""
        raise UserError(f"no group has two sizes, which transfer is seen between: there are {' and '.join(own)}{why}")
    order, places = {"SP": 0, "recipe, k = 1": 2}, runs["family"].unique().tolist()
    return sorted(found, key=lambda group: (places.index(group.family), order.get(group.label, 1)))


def families(found: Iterable[Group]) -> list[list[Group]]:
    """The groups of `transfer` that differ only in the parametrization, together."""
    return [list(own) for _, own in groupby(found, lambda group: group.family)]


def _family(axis: str, settings: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    own = ("parametrization", "branch_depth")
    return ("axis", axis), *((key, text) for key, text in settings if key not in own)


def judge(found: Group, slope_tolerance: float, regret_tolerance: float) -> str:
    """The verdict: one of the four words above, the reasons, and the numbers they rest on; see `transfer`."""
    axis, slope, cost, one_seed = found.axis, found.slope, found.regrets[-1], found.noise.residual is None
    small, large = (f"{axis} {curve.size}" for curve in (found.curves[0], found.curves[-1]))
    drift = _drift(found, slope_tolerance)
    facts = f"slope {bounded_slope(slope)}, regret {cost}, noise {found.noise}"

    # Which of the values that tie at the smallest size is tuned is chance: a failure must not hang on it.
    dear, cheap = _dear(cost, regret_tolerance), cost.nats is not None and cost.nats <= regret_tolerance
    other = ""
    for value, (nats, half_width) in sorted(cost.ties.items(), key=lambda tie: tie[1]):
        if nats <= regret_tolerance if dear else cheap and nats - half_width > regret_tolerance:
            other = f"2^{value:g}, which ties with 2^{cost.value:g} at {small}, costs {nats:.3f} nats at {large}"
            break
    failure = ""
    if not found.curves[-1].trained:
        failure = f"every value that was tried diverged at {large}"
    elif dear and not other:
        failure = f"what is best at {small} {'diverges' if cost.nats is None else f'costs {cost} nats'} at {large}"
        if one_seed and cost.nats is not None and not drift:
            # The noise at which one seed's regret would no longer stand above the tolerance.
            explaining = (cost.nats - regret_tolerance) / (student_t(math.inf) * math.sqrt(2))
            failure = f"{failure} (unless seeds differ by {explaining:.3f})" if explaining >= _ASSUMED_NOISE else ""
    if failure:
        return f"{FAILS}: {', and '.join(filter(None, [drift, failure]))}; {facts}"
    facts += f" ({other})" if other and not dear else ""

    edges = ", ".join(best.size for best in found.optima if best.edge)
    lost = ", ".join(curve.size for curve in found.curves if not curve.trained)
    regrets = zip(found.curves, found.regrets, strict=True)
    between = [curve.size for curve, own in regrets if _dear(own, regret_tolerance)]
    steep = slope is None or max(abs(slope.slope), -slope.low / 2, slope.high / 2) > slope_tolerance
    doubts: dict[str, object] = {
        "fewer than two sizes trained": slope is None,
        f"at {axis} {edges} the best value is the last one tried, so widen the grid": edges
        and (not drift or cost.at_least),
        f"nothing trained at {axis} {lost}": lost,
        f"the best value of {small} was not tried at {large}": cost.why == "missing",
        f"{other}: more seeds at {small}": dear and other,
        "the regret may be noise: more seeds": cost.nats and not cheap and not other,
        f"the regret is high at {axis} {', '.join(between)}, although not at the largest": cheap and between,
        "the slope is too uncertain: more sizes, seeds or steps": not drift and not edges and steep,
    }
    if caveats := [doubt for doubt, holds in doubts.items() if holds]:
        return f"{UNCLEAR}: {'; '.join(filter(None, [drift, *caveats]))}; {facts}"
    return f"{DRIFTS}: {drift}, but what is tuned small costs little; {facts}" if drift else f"{TRANSFERS}: {facts}"


def _drift(found: Group, tolerance: float) -> str:
    """A sentence where the optimum moves faster than is tolerated, and certainly moves; else empty."""
    if (slope := found.slope) is None:
        return ""
    falls = slope.slope < -tolerance and slope.high < 0 and slope.bound in ("", "at most")
    rises = slope.slope > tolerance and slope.low > 0 and slope.bound in ("", "at least")
    axis = "width and depth" if found.axis == "both" else found.axis
    by = f"{'falls' if falls else 'rises'} by {'at least ' * bool(slope.bound)}{abs(slope.slope):.2f}"
    return f"the best value {by} powers of two for each doubling of the {axis}" if falls or rises else ""


def _dear(cost: Regret, tolerance: float) -> bool:
    """Whether a regret exceeds the tolerance by more than the noise explains."""
    return cost.why == "diverged" or (cost.nats is not None and cost.nats - cost.ci_half_width > tolerance)


def bounded_slope(slope: Slope | None) -> str:
    """A slope with its interval where that is known, marked as a bound where optima lie at the edge."""
    if slope is None:
        return "-"
    bound = {"at most": "≤ ", "at least": "≥ ", "unknown": "? "}.get(slope.bound, "")
    known = math.isfinite(slope.low)
    return bound + (tables.interval(slope.slope, slope.low, slope.high) if known else tables.signed(slope.slope))
