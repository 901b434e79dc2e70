"""Judges each ratio by its exponent of depth and its smallest value, then each assumption. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass

from mup_lightning import tables
from mup_lightning.studies.assumptions.settings import TIMES, AssumptionSettings
from mup_lightning.studies.fit import Fit, Verdict, fit, judge, overall

Ratios = dict[str, dict[str, list[float]]]
"""Quantity -> matrix -> a value for every block."""

FORMULAS = {
    "weights": "‖W+ΔW‖ / (‖W‖+‖ΔW‖)",
    "features": "‖h+Δh‖ / (‖h‖+‖Δh‖)",
    "activation": "‖φ(Wh)‖ / ‖Wh‖",
    "alignment": "‖ΔW h(x_i)‖ / ‖(1/B) ΔW_(i) h(x_i)‖",
}
"""Assumption -> its ratio; all norms are RMS norms."""

NEAR_ONE = ("weights", "features")
"""Assumptions whose ratios should stay near 1; the others only have to be flat in depth."""

NO_CLAIM = {("activation", "value")}
"""Measured, but not judged: attention's averaging of V takes the place of a nonlinearity, but the theory, whose
branches are plain products, makes no claim about it."""

BROAD = ("only", "mean")
"""Positions that stand for all blocks."""


@dataclass(frozen=True)
class Run:
    """The measurements of one training.

    Attributes:
        network: mlp or gpt2.
        optimizer: its name.
        depth: L.
        seed: of weights and data.
        losses: before each step.
        times: time -> the ratios then; see `measure.measured_step`.
    """

    network: str
    optimizer: str
    depth: int
    seed: int
    losses: list[float]
    times: dict[str, Ratios]


@dataclass(frozen=True)
class Line:
    """One ratio against depth.

    Attributes:
        matrix: name of the matrix, or "stream".
        time: one of `TIMES`.
        position: first, middle, last or mean (over blocks); only, for a matrix outside blocks.
        means: the ratio at every depth, averaged over the seeds.
        fit: its exponent of depth.
        verdict: None where nothing is claimed.
    """

    matrix: str
    time: str
    position: str
    means: list[float]
    fit: Fit
    verdict: Verdict | None

    @property
    def where(self) -> str:
        """Matrix, time and position in words."""
        place = {"only": "", "mean": ", mean over blocks"}.get(self.position, f", {self.position} block")
        return f"{self.matrix}, {self.time}{place}"

    @property
    def exponent(self) -> str:
        """The exponent in words."""
        return tables.plus_minus(self.fit.exponent, self.fit.half_width)


@dataclass(frozen=True)
class Finding:
    """The conclusion about one assumption, for one network and optimizer, and the lines that it rests on."""

    network: str
    optimizer: str
    assumption: str
    verdict: Verdict
    sentence: str
    lines: list[Line]

    @property
    def judged(self) -> list[Line]:
        """The lines about which something is claimed."""
        return [line for line in self.lines if line.verdict]


def steepest(lines: Sequence[Line]) -> Line:
    """The line with the largest exponent, of those that stand for all blocks."""
    return max((line for line in lines if line.position in BROAD), key=lambda line: abs(line.fit.exponent))


def extremes(lines: Sequence[Line]) -> tuple[float, float]:
    """Smallest and largest ratio."""
    return min(min(line.means) for line in lines), max(max(line.means) for line in lines)


def positions(values: Sequence[float]) -> dict[str, float]:
    """Position -> value, of a value for every block (or the only one)."""
    if len(values) == 1:
        return {"only": values[0]}
    middle = values[len(values) // 2]
    return {"first": values[0], "middle": middle, "last": values[-1], "mean": sum(values) / len(values)}


def conclude(runs: list[Run], assumption: str, settings: AssumptionSettings) -> Finding:
    """Judge one assumption.

    Args:
        runs: of one network and one optimizer, all depths and seeds.
        assumption: one of `FORMULAS`.
        settings: depths, seeds and thresholds.
    """
    by_size = {(run.depth, run.seed): run.times for run in runs}
    lines = []
    for matrix in runs[0].times[TIMES[0]][assumption]:
        for time in TIMES:
            at = {size: positions(times[time][assumption][matrix]) for size, times in by_size.items()}
            for position in at[settings.depths[0], 0]:
                values = [[at[L, seed][position] for L in settings.depths] for seed in range(settings.seeds)]
                lines.append(_judge(assumption, matrix, time, position, values, settings))
    # Single blocks are noisy: their lines can refute an assumption, but not leave it unclear.
    counted = (line.verdict for line in lines if line.verdict and (line.position in BROAD or line.verdict == "FAIL"))
    verdict = overall(counted)
    judged = [line for line in lines if line.verdict]
    return Finding(
        runs[0].network, runs[0].optimizer, assumption, verdict, _sentence(assumption, verdict, judged, settings), lines
    )


def _judge(
    assumption: str, matrix: str, time: str, position: str, values: list[list[float]], settings: AssumptionSettings
) -> Line:
    """A line of values by seed and depth. FAIL also where a ratio that should be near 1 is below `least`."""
    found = fit(settings.depths, values)
    means = [sum(column) / len(values) for column in zip(*values, strict=True)]
    verdict: Verdict | None = judge((), found, (-settings.tolerance, settings.tolerance)).verdict
    if assumption in NEAR_ONE and min(means) < settings.least:
        verdict = Verdict.FAIL
    if (assumption, matrix) in NO_CLAIM:
        verdict = None
    return Line(matrix, time, position, means, found, verdict)


def _sentence(assumption: str, verdict: Verdict, lines: list[Line], settings: AssumptionSettings) -> str:
    low, high = extremes(lines)
    worst = steepest(lines)
    parts = [
        f"{verdict}: ratio between {low:.2f} and {high:.2f} at all depths, steepest exponent {worst.exponent} "
        f"({worst.where})"
    ]
    beyond = f"beyond ±{settings.tolerance:g}"
    if verdict is Verdict.FAIL:
        below = [line for line in lines if assumption in NEAR_ONE and min(line.means) < settings.least]
        steep = [line for line in lines if line.fit.low > settings.tolerance or line.fit.high < -settings.tolerance]
        if below:
            least = min(below, key=lambda line: min(line.means))
            parts.append(f"below {settings.least:g} in {len(below)} of {len(lines)} lines (lowest: {least.where})")
        if steep:
            parts.append(f"exponent {beyond} in {len(steep)} of {len(lines)} lines ({steep[0].where})")
        else:
            parts.append(f"yet no exponent lies {beyond}")
    elif verdict is Verdict.UNCLEAR:
        vague = [line for line in lines if line.verdict is Verdict.UNCLEAR and line.position in BROAD]
        parts.append(f"the interval reaches {beyond} in {len(vague)} of {len(lines)} lines ({vague[0].where})")
    return "; ".join(parts)
