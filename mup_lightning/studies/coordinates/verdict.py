"""Fits how every feature, and its change, grows with the size of the model, and judges the exponents."""

import math
from collections import defaultdict

from mup_lightning import tables
from mup_lightning.model.taps import ATTENTION, EMBEDDING, LOGITS, RESIDUAL
from mup_lightning.studies.coordinates.results import Finding, Run
from mup_lightning.studies.coordinates.settings import SYMBOLS, CheckSettings, Shape
from mup_lightning.studies.fit import Judgement, Verdict, fit, judge

QUANTITIES = {
    "init": "at initialisation",
    "feature": "after the last step",
    "change": "its change after the last step",
}
"""What is fitted of a feature: ‖h₀‖_R before the first step, ‖h_T‖_R and ‖h_T − h₀‖_R after the last one."""

_LEAST_SIZES = 3


def band(feature: str, quantity: str, settings: CheckSettings, *, layer_norm: bool = True) -> tuple[float, float]:
    """Lowest and highest exponent that is accepted.

    After the last step nothing may grow, and nothing shrink: a change that vanishes with size belongs to a part of the
    model that has stopped learning. Before the first step nothing may grow, but sums of random terms do shrink: L
    branches of size 1/L add up to 1/√L next to the embedding, and n products of a feature with the head's random
    weights, over n, to logits of 1/√n. Nothing shrinks faster than that, and the rest not at all.

    Args:
        feature: one of `measure.features`.
        quantity: one of `QUANTITIES`.
        settings: the axis and the thresholds.
        layer_norm: whether branches and head receive the residual stream at a constant norm.
    """
    if quantity == "feature":
        return -settings.feature_band, settings.feature_band
    if quantity == "change":
        return -settings.change_band, settings.change_band
    wide, deep = settings.axis != "depth", settings.axis != "width"
    falls_with_depth = deep and _depends_on_stream(feature, layer_norm)
    least = (-0.5 if wide and feature == LOGITS else 0.0) + (-0.5 if falls_with_depth else 0.0)
    return least - settings.growth_at_init, settings.growth_at_init


def _depends_on_stream(feature: str, layer_norm: bool) -> bool:
    """Whether a feature depends on the norm of the sum of branches, which falls with depth before the first step.

    The residual stream is that sum. A LayerNorm removes its size, but not its composition, on which attention depends:
    measured from 16 to 64 blocks it falls as L^-0.17 in the last one, as the stream does, while MLP branches, the final
    norm and the logits stay within L^±0.01.
    """
    point, _, place = feature.partition(", ")
    if feature == EMBEDDING or (place == "first block" and point != RESIDUAL):
        return False
    return not layer_norm or point in (RESIDUAL, ATTENTION)


def conclude(
    runs: list[Run], sizes: dict[Shape, float], settings: CheckSettings, *, layer_norm: bool = True
) -> Finding:
    """Judge the trainings of one parametrization.

    Args:
        runs: the trainings, the same seeds at every size.
        sizes: (width, depth) -> size, from small to large.
        settings: the axis and the thresholds.
        layer_norm: see `band`.
    """
    by_shape: dict[Shape, list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.seed):
        by_shape[run.shape].append(run)
    lost = [shape for shape in sizes if any(run.diverged for run in by_shape[shape])]
    sound = {shape: size for shape, size in sizes.items() if shape not in lost}
    exponents = _exponents(by_shape, sound, settings, layer_norm) if len(sound) >= _LEAST_SIZES else []
    worst: Judgement | None = None
    smallest = next(iter(sizes))
    if smallest in lost:
        verdict = Verdict.UNCLEAR
        sentence = (
            f"training diverges at the smallest size already, width {smallest[0]} and depth {smallest[1]}: "
            f"the base learning rate is too large, and says nothing about growth"
        )
    elif lost:
        verdict = Verdict.FAIL
        where = " and at ".join(f"width {width}, depth {depth}" for width, depth in lost)
        sentence = f"training diverges at {where}, but not at the smallest size"
    else:
        worst = max(exponents, key=_severity)
        verdict, sentence = worst.verdict, in_words(worst, settings.axis)
    return Finding(
        verdict=verdict,
        sentence=sentence,
        exponents=exponents,
        worst=worst.label if worst else None,
        seeds=len({run.seed for run in runs}),
        lost=lost,
        diverged=[
            f"{shape} seed {run.seed}: {run.diverged}" for shape in lost for run in by_shape[shape] if run.diverged
        ],
    )


def _exponents(
    by_shape: dict[Shape, list[Run]], sizes: dict[Shape, float], settings: CheckSettings, layer_norm: bool
) -> list[Judgement]:
    result = []
    by_seed = list(zip(*(by_shape[shape] for shape in sizes), strict=True))
    for quantity in QUANTITIES:
        for name in by_seed[0][0].norms:
            values = [[_value(run, name, quantity) for run in runs] for runs in by_seed]
            found = fit(list(sizes.values()), values) if min(map(min, values)) > 0 else None
            result.append(judge((name, quantity), found, band(name, quantity, settings, layer_norm=layer_norm)))
    return result


def _value(run: Run, feature: str, quantity: str) -> float:
    curve = (run.changes if quantity == "change" else run.norms)[feature]
    return curve[0 if quantity == "init" else -1]


def _severity(one: Judgement) -> tuple[int, bool, float]:
    """The larger, the sooner an exponent decides: by verdict, then by how far its interval leaves the band.

    Of several FAILs, one before the first step comes first: what happens in training follows from it.
    """
    order = (Verdict.PASS, Verdict.UNCLEAR, Verdict.FAIL).index(one.verdict)
    least, most = one.band
    outside = math.inf if one.fit is None else max(one.fit.high - most, least - one.fit.low) / most
    return order, one.verdict is Verdict.FAIL and one.label[1] == "init", outside


def in_words(one: Judgement, axis: str) -> str:
    """Describe the exponent that decides."""
    feature, quantity = one.label
    least, most = one.band
    where = f"{feature}, {QUANTITIES[quantity]}"
    if one.fit is None:
        return f"{where}, is zero"
    allowed = f"within ±{most:g}" if least == -most else f"from {least:g} to {most:+g}"
    found = f"{SYMBOLS[axis]}^{tables.interval(one.fit.exponent, one.fit.low, one.fit.high)}"
    if one.verdict is Verdict.PASS:
        return f"no exponent leaves its band; the nearest to its edge is {where}: {found}, allowed {allowed}"
    if one.verdict is Verdict.FAIL:
        return f"{where}, {'grows' if one.fit.low > most else 'shrinks'} as {found}; allowed {allowed}"
    return (
        f"{where}, goes as {found}, an interval that crosses the edge of what is allowed ({allowed}); "
        f"more --seeds, or sizes further apart, would tell"
    )
