"""Do the assumptions hold? Exponents of depth and smallest ratios, cell by cell; then one sentence for each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mup_lightning.studies.assumptions.settings import TIMES, AssumptionSettings
from mup_lightning.studies.fit import Fit, Verdict, fit, judge

HOLDS, FAILS, UNCLEAR, NOT_JUDGED = "holds", "does not hold", "unclear", "not judged"

ASSUMPTIONS = ("weights", "features", "activation", "alignment")
"""‖W+ΔW‖/(‖W‖+‖ΔW‖), ‖h+Δh‖/(‖h‖+‖Δh‖), ‖φ(Wh)‖/‖Wh‖, ‖ΔW h‖/‖(1/B) ΔW_(i) h‖."""

NEAR_ONE = ("weights", "features")
"""Those of which the theory says that they stay near 1; the others only have to be flat in depth."""

NO_CLAIM = {("activation", "value")}
"""Measured, but not judged: attention's averaging of V stands where a nonlinearity would, but the theory, whose
branches are plain products, says nothing of it."""

BROAD = ("only", "mean")
"""Positions that stand for all blocks."""


@dataclass(frozen=True)
class Cell:
    """One line over depth.

    Attributes:
        matrix: see `tape.Matrix`, or "stream".
        time: start, middle or end.
        position: first, middle, last or mean (over blocks); only, for a matrix outside blocks.
        means: the ratio at every depth, averaged over the seeds.
        fit: of its exponent in depth.
        verdict: holds, does not hold, unclear or not judged.
    """

    matrix: str
    time: str
    position: str
    means: list[float]
    fit: Fit
    verdict: str


def positions(values: Sequence[float], inside: bool) -> dict[str, float]:
    """Position -> value, of a value for every block (or the only one)."""
    if not inside:
        return {"only": values[0]}
    middle = values[len(values) // 2]
    return {"first": values[0], "middle": middle, "last": values[-1], "mean": sum(values) / len(values)}


def judge_cell(assumption: str, means: list[float], found: Fit, settings: AssumptionSettings) -> str:
    """Fails where a ratio that should be near 1 is below `least`, or the exponent's interval is wholly outside of ±
    tolerance; holds where it is wholly inside; else unclear."""
    if assumption in NEAR_ONE and min(means) < settings.least:
        return FAILS
    judged = judge((), found, (-settings.tolerance, settings.tolerance)).verdict
    return {Verdict.PASS: HOLDS, Verdict.FAIL: FAILS}.get(judged, UNCLEAR)


def cells(runs: list[dict[str, Any]], assumption: str, settings: AssumptionSettings) -> list[Cell]:
    """Judge every line of one assumption.

    Args:
        runs: of one network and one optimizer, all depths and seeds.
        assumption: which.
        settings: depths, seeds, thresholds.
    """
    by_size = {(run["depth"], run["seed"]): run["times"] for run in runs}
    result = []
    for matrix, blocks in runs[0]["times"][TIMES[0]][assumption].items():
        inside = len(blocks) > 1
        for time in TIMES:
            lines = {size: positions(times[time][assumption][matrix], inside) for size, times in by_size.items()}
            for position in lines[settings.depths[0], 0]:
                values = [[lines[L, seed][position] for L in settings.depths] for seed in range(settings.seeds)]
                found = fit(settings.depths, values)
                means = [sum(column) / settings.seeds for column in zip(*values, strict=True)]
                verdict = judge_cell(assumption, means, found, settings)
                if (assumption, matrix) in NO_CLAIM:
                    verdict = NOT_JUDGED
                result.append(Cell(matrix, time, position, means, found, verdict))
    return result


def worst(verdicts: Iterable[str]) -> str:
    """Fails where one does, else unclear where one is, else holds."""
    found = set(verdicts)
    return next((verdict for verdict in (FAILS, UNCLEAR) if verdict in found), HOLDS)


def overall(judged: Sequence[Cell]) -> str:
    """The verdict of one assumption. Single blocks are noisy: their lines can refute it, but not leave it unclear."""
    return worst(cell.verdict for cell in judged if cell.verdict == FAILS or cell.position in BROAD)


def sentence(assumption: str, judged: Sequence[Cell], settings: AssumptionSettings) -> str:
    """The verdict with its numbers, in plain words."""
    verdict = overall(judged)
    judged = [cell for cell in judged if cell.verdict != NOT_JUDGED]
    low, high = min(min(cell.means) for cell in judged), max(max(cell.means) for cell in judged)
    steepest = max((cell for cell in judged if cell.position in BROAD), key=lambda cell: abs(cell.fit.exponent))
    parts = [f"{verdict}: ratio between {low:.2f} and {high:.2f} at all depths, steepest exponent {_words(steepest)}"]
    beyond = f"beyond ±{settings.tolerance:g}"
    if verdict == FAILS:
        below = [cell for cell in judged if assumption in NEAR_ONE and min(cell.means) < settings.least]
        steep = [
            cell
            for cell in judged
            if judge((), cell.fit, (-settings.tolerance, settings.tolerance)).verdict is Verdict.FAIL
        ]
        if below:
            lowest = min(below, key=lambda cell: min(cell.means))
            parts.append(f"below {settings.least:g} in {len(below)} of {len(judged)} lines (least: {_where(lowest)})")
        if steep:
            parts.append(f"exponent {beyond} in {len(steep)} of {len(judged)} lines ({_where(steep[0])})")
        else:
            parts.append(f"yet no exponent lies {beyond}")
    elif verdict == UNCLEAR:
        vague = [cell for cell in judged if cell.verdict == UNCLEAR and cell.position in BROAD]
        parts.append(f"the interval reaches {beyond} in {len(vague)} of {len(judged)} lines ({_where(vague[0])})")
    return "; ".join(parts)


def as_plain(judged: Sequence[Cell]) -> list[dict[str, Any]]:
    """The cells as plain values."""
    return [asdict(cell) for cell in judged]


def _words(cell: Cell) -> str:
    half = (cell.fit.high - cell.fit.low) / 2
    return f"{round(cell.fit.exponent, 2) + 0.0:+.2f} ± {half:.2f} ({_where(cell)})"


def _where(cell: Cell) -> str:
    place = {"only": "", "mean": ", mean over blocks"}.get(cell.position, f", {cell.position} block")
    return f"{cell.matrix}, {cell.time}{place}"
