"""PASS, FAIL or INCONCLUSIVE: every exponent against its band, and all of them in one sentence."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import Any

from mup_lightning.model.taps import ATTENTION, EMBEDDING, LOGITS, RESIDUAL
from mup_lightning.studies.coordinates.settings import CheckSettings
from mup_lightning.studies.fits import QUANTITIES, Fit, features, fit, value

PASS, FAIL, INCONCLUSIVE = "PASS", "FAIL", "INCONCLUSIVE"

_SEVERITY = {PASS: 0, INCONCLUSIVE: 1, FAIL: 2}

SYMBOLS = {"width": "n", "depth": "L", "both": "r"}
"""What exponents are of: width, depth, or the ratio that both have grown by."""

_LEAST_SIZES = 3


@dataclass(frozen=True)
class Judged:
    """One exponent, judged.

    Attributes:
        feature: as `features` names it.
        quantity: of `QUANTITIES`.
        fit: None where the quantity is zero somewhere, so that it has no exponent.
        least: lowest exponent that is accepted.
        most: highest one.
        verdict: PASS: the interval lies inside; FAIL: wholly outside; else INCONCLUSIVE.
    """

    feature: str
    quantity: str
    fit: Fit | None
    least: float
    most: float
    verdict: str

    @property
    def outside(self) -> float:
        """How far the interval reaches over its band, in units of the band's upper edge; below 0: how much is left."""
        if self.fit is None:
            return math.inf
        return max(self.fit.high - self.most, self.least - self.fit.low) / self.most


def band(feature: str, quantity: str, settings: CheckSettings, *, layer_norm: bool = True) -> tuple[float, float]:
    """Lowest and highest exponent that is accepted.

    After the last step nothing may grow, and nothing shrink: a change that vanishes with size is a part of the model
    that has stopped learning. Before the first step nothing may grow, but what is a sum of random numbers rightly
    shrinks: L branches of size 1/L add up to 1/√L next to the embedding, and n products of a feature with the head's
    random weights, over n, to logits of 1/√n. Nothing shrinks faster than that, and the rest not at all.

    Args:
        feature: of `features`.
        quantity: of `QUANTITIES`.
        settings: the axis and the thresholds.
        layer_norm: whether what is computed from the sum is given it at a constant norm.
    """
    if quantity == "feature":
        return -settings.feature_band, settings.feature_band
    if quantity == "change":
        return -settings.change_band, settings.change_band
    wide, deep = settings.axis != "depth", settings.axis != "width"
    falls_with_depth = deep and _sums_branches(feature, layer_norm)
    least = (-0.5 if wide and feature == LOGITS else 0.0) + (-0.5 if falls_with_depth else 0.0)
    return least - settings.growth_at_init, settings.growth_at_init


def _sums_branches(feature: str, layer_norm: bool) -> bool:
    """Whether a feature hears of the size of the sum of branches, which falls with depth before the first step.

    The residual stream is that sum. Behind a LayerNorm its size is gone, but not what it is made of, and attention
    hears of that: measured from 16 to 64 blocks it falls as L^-0.17 in the last one, as the stream does, while MLP
    branches, the final norm and the logits stay within L^±0.01.
    """
    point, _, place = feature.partition(", ")
    if feature == EMBEDDING or (place == "first block" and point != RESIDUAL):
        return False
    return not layer_norm or point in (RESIDUAL, ATTENTION)


def judge(
    runs: list[dict[str, Any]],
    sizes: dict[tuple[int, int], float],
    settings: CheckSettings,
    *,
    layer_norm: bool = True,
) -> dict[str, Any]:
    """Judge the trainings of one parametrization.

    Args:
        runs: from `measure`, every size with the same seeds.
        sizes: (width, depth) -> size, from small to large.
        settings: the axis and the thresholds.
        layer_norm: whether the models have any; see `band`.

    Returns:
        Plain values: "verdict", "sentence", "worst" (feature and quantity; null where no exponent decided), "diverged"
        (a line a run), "exponents": a dict for every judged one, with feature, quantity, exponent, low, high, last
        (see `Fit`), least, most, verdict.
    """
    by_shape: dict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run["seed"]):
        by_shape[run["width"], run["depth"]].append(run)
    sound = {shape: size for shape, size in sizes.items() if not any(run["diverged"] for run in by_shape[shape])}
    judged = (
        _judge_exponents({shape: by_shape[shape] for shape in sound}, sound, settings, layer_norm)
        if len(sound) >= _LEAST_SIZES
        else []
    )
    lost = [run for shape in sizes for run in by_shape[shape] if run["diverged"]]
    worst = max(judged, key=lambda one: (_SEVERITY[one.verdict], _blame(one), one.outside), default=None)
    smallest = next(iter(sizes))
    if lost and smallest not in sound:
        verdict, worst = INCONCLUSIVE, None
        sentence = (
            f"training diverges at the smallest size already, width {smallest[0]} and depth {smallest[1]}: "
            f"the base learning rate is too large, and says nothing about growth"
        )
    elif lost:
        verdict, worst = FAIL, None
        shapes = [f"width {shape[0]}, depth {shape[1]}" for shape in sizes if shape not in sound]
        sentence = f"training diverges at {' and at '.join(shapes)}, but not at the smallest size"
    else:
        assert worst is not None
        verdict, sentence = worst.verdict, in_words(worst, settings.axis)
    return {
        "verdict": verdict,
        "sentence": sentence,
        "worst": {"feature": worst.feature, "quantity": worst.quantity} if worst else None,
        "diverged": [f"({run['width']}, {run['depth']}) seed {run['seed']}: {run['diverged']}" for run in lost],
        "exponents": [_plain(one) for one in judged],
    }


def _judge_exponents(
    by_shape: dict[tuple[int, int], list[dict[str, Any]]],
    sizes: dict[tuple[int, int], float],
    settings: CheckSettings,
    layer_norm: bool,
) -> list[Judged]:
    result = []
    for quantity in QUANTITIES:
        for name, taps in features(settings.axis).items():
            least, most = band(name, quantity, settings, layer_norm=layer_norm)
            values = [
                [value(by_shape[shape][seed], taps(shape[1]), quantity) for shape in sizes]
                for seed in range(min(map(len, by_shape.values())))
            ]
            if min(map(min, values)) <= 0:
                result.append(Judged(name, quantity, None, least, most, FAIL))
                continue
            found = fit(list(sizes.values()), values)
            result.append(Judged(name, quantity, found, least, most, _verdict(found, least, most)))
    return result


def _blame(one: Judged) -> bool:
    """Of several FAILs, one before the first step is named: what follows in training follows from it."""
    return one.verdict == FAIL and one.quantity == "init"


def _verdict(found: Fit, least: float, most: float) -> str:
    if least <= found.low and found.high <= most:
        return PASS
    return FAIL if found.high < least or found.low > most else INCONCLUSIVE


WHEN = {"init": "at initialisation", "feature": "after the last step", "change": "its change after the last step"}


def in_words(one: Judged, axis: str) -> str:
    """The exponent that decided."""
    where = f"{one.feature}, {WHEN[one.quantity]}"
    if one.fit is None:
        return f"{where}, is zero"
    allowed = f"within ±{one.most:g}" if one.least == -one.most else f"from {one.least:g} to {one.most:+g}"
    found = f"{SYMBOLS[axis]}^{one.fit.exponent:+.2f} [{one.fit.low:+.2f}, {one.fit.high:+.2f}]"
    if one.verdict == PASS:
        return f"no exponent leaves its band; the nearest to its edge is {where}: {found}, allowed {allowed}"
    if one.verdict == FAIL:
        way = "grows" if one.fit.low > one.most else "shrinks"
        return f"{where}, {way} as {found}; allowed {allowed}"
    return (
        f"{where}, goes as {found}, an interval that crosses the edge of what is allowed ({allowed}); "
        f"more --seeds, or sizes further apart, would tell"
    )


def _plain(one: Judged) -> dict[str, Any]:
    found: dict[str, Any] = asdict(one.fit) if one.fit else dict.fromkeys(("exponent", "low", "high", "last"))
    found = {key: number if number is None else round(number, 4) for key, number in found.items()}
    head = {"feature": one.feature, "quantity": one.quantity}
    return head | found | {"least": one.least, "most": one.most, "verdict": one.verdict}
