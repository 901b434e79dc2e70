"""What the studies share: exponents of measured sizes, how sure they are, what a band makes of them, and findings.

Imports no torch.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from mup_lightning import tables
from mup_lightning.files import write_json
from mup_lightning.versions import versions

Label = tuple[str, ...]
Band = tuple[float, float]
Shape = tuple[int, ...]  # (width, depth) of a model, and its experts where their number grows


@dataclass(frozen=True)
class Fit:
    """An exponent a of value = c · size^a, and its 95 % interval; `last`: between the two largest sizes alone."""

    exponent: float
    low: float
    high: float
    last: float

    @property
    def half_width(self) -> float:
        """Half the width of the 95 % interval."""
        return (self.high - self.low) / 2


def fit(sizes: Sequence[float], values: Sequence[Sequence[float]]) -> Fit:
    """Fit a least-squares line to log value against log size for every seed, and average the slopes.

    The interval is that of the mean of S independent slopes (Student's t, S - 1 degrees of freedom). The residuals of
    the lines do not enter: they would count curvature as noise, treat all sizes as equally noisy, and treat runs that
    share a seed's data order as independent. Curvature shows in `last` instead. There are P >= 3 sizes and, for each of
    S >= 2 seeds, P values above 0.
    """
    x_P = np.log(np.asarray(sizes, dtype=float))
    y_SP = np.log(np.asarray(values, dtype=float))
    centred_P = x_P - x_P.mean()
    slopes_S = y_SP @ centred_P / (centred_P**2).sum()
    slope = float(slopes_S.mean())
    half = student_t(len(slopes_S) - 1) * float(slopes_S.std(ddof=1)) / math.sqrt(len(slopes_S))
    last = float((y_SP[:, -1] - y_SP[:, -2]).mean() / (x_P[-1] - x_P[-2]))
    return Fit(slope, slope - half, slope + half, last)


def student_t(degrees_of_freedom: float, intervals: int = 1) -> float:
    """Half a two-sided 95 % interval in standard errors; of each of several that all hold (Bonferroni)."""
    return float(stats.t.ppf(1 - 0.025 / intervals, degrees_of_freedom))


class Verdict(StrEnum):
    """What a study concludes. UNCLEAR: the data allow both."""

    PASS = "PASS"
    FAIL = "FAIL"
    UNCLEAR = "UNCLEAR"


MARKS = {None: "", Verdict.PASS: "", Verdict.UNCLEAR: " ?", Verdict.FAIL: " ✗"}  # mark after an exponent in a table


def overall(verdicts: Iterable[Verdict | None]) -> Verdict:
    """FAIL if any is, else UNCLEAR if any is, else PASS."""
    found = set(verdicts)
    return next((verdict for verdict in (Verdict.FAIL, Verdict.UNCLEAR) if verdict in found), Verdict.PASS)


@dataclass(frozen=True)
class Run:
    """What one training, `of` something such as ("mlp", "adamw"), gave."""

    of: Label
    shape: Shape
    seed: int  # of weights and data
    losses: list[float]  # before each step
    measured: dict[str, Any]  # plain values, as the study's `measure` describes them
    diverged: str | None = None  # the step at which it diverged, and what was seen there


@dataclass(frozen=True)
class Line:
    """A measured value against size: its exponent, held against a band."""

    label: Label  # what was measured, such as ("hidden", "later", "width")
    values: list[list[float]]  # for each seed, that of every size
    fit: Fit | None  # its exponent; None where a value is zero, so that there is none
    band: Band | None  # lowest and highest exponent accepted; None: nothing is claimed
    verdict: Verdict | None  # see `judge`; None where nothing is claimed

    @property
    def number(self) -> str:
        """The exponent, such as +0.48 ± 0.03."""
        return tables.plus_minus(self.fit.exponent, self.fit.half_width) if self.fit else "zero"

    @property
    def means(self) -> list[float]:
        """The value at every size, averaged over the seeds."""
        return [sum(column) / len(column) for column in zip(*self.values, strict=True)]


@dataclass(frozen=True)
class Finding:
    """A conclusion about `of`, such as ("mlp", "adamw", "weights"); its verdict is None where nothing is claimed."""

    of: Label
    verdict: Verdict | None
    sentence: str
    lines: list[Line]
    notes: list[str] = field(default_factory=list)

    def line(self, *label: str) -> Line | None:
        """The line of a label, if there is one."""
        return next((line for line in self.lines if line.label == label), None)

    def cell(self, *label: str) -> str:
        """A line's exponent with the mark of its verdict; a dash if there is no such line."""
        line = self.line(*label)
        return line.number + MARKS[line.verdict] if line else "–"


@dataclass(frozen=True, kw_only=True)
class Result:
    """A finished study: its options, its conclusions, and everything measured."""

    settings: Any
    findings: list[Finding]
    runs: list[Run]
    versions: dict[str, str | None] = field(default_factory=versions)

    def write(self, file: Path) -> None:
        """Write everything as JSON."""
        write_json(file, asdict(self))

    def short(self) -> dict[str, Any]:
        """Plain values for JSON, without the measurements of single trainings."""
        return {key: value for key, value in asdict(self).items() if key != "runs"}


def lines(
    runs: Sequence[Run],
    sizes: Mapping[Shape, float],
    values: Callable[[Run], Mapping[Label, float]],
    band: Callable[[Label], Band | None],
) -> list[Line]:
    """Fit and judge everything that was measured, by label, of trainings with the same seeds at every size.

    `sizes` are (width, depth) -> what exponents are powers of, from small to large; other shapes are left out. A `band`
    of None claims nothing.
    """
    found = {(run.seed, run.shape): values(run) for run in runs if run.shape in sizes}
    seeds = sorted({seed for seed, _ in found})
    result = []
    for label in next(iter(found.values())):
        by_seed = [[found[seed, shape][label] for shape in sizes] for seed in seeds]
        exponent = fit(list(sizes.values()), by_seed) if min(map(min, by_seed)) > 0 else None
        allowed = band(label)
        result.append(Line(label, by_seed, exponent, allowed, judge(exponent, allowed) if allowed else None))
    return result


def judge(exponent: Fit | None, band: Band) -> Verdict:
    """PASS if the interval lies inside the band, FAIL if wholly outside (or there is no exponent), else UNCLEAR."""
    least, most = band
    if exponent is None or exponent.high < least or exponent.low > most:
        return Verdict.FAIL
    return Verdict.PASS if least <= exponent.low and exponent.high <= most else Verdict.UNCLEAR


def deciding(found: Sequence[Line]) -> list[Line]:
    """The lines that make the verdict over all of them, the furthest outside its band, in its widths, first."""

    def inside(line: Line) -> float:
        if line.fit is None or line.band is None:
            return -math.inf
        least, most = line.band
        return min(most - line.fit.high, line.fit.low - least) / (most - least)

    verdict = overall(line.verdict for line in found)
    return sorted((line for line in found if line.verdict is verdict), key=inside)


def conclude(found: Sequence[Line], where: Callable[[Line], str]) -> tuple[Verdict, str]:
    """The verdict over judged lines, and its reason, with the two furthest outside; `where` puts a label into words."""
    worst = deciding(found)
    words = []
    for line in worst[:2]:
        least, most = line.band or (-math.inf, math.inf)
        allowed = f"±{most:g}" if least == -most else f"{least:+.3g} to {most:+.3g}"
        words.append(f"{where(line)}{line.number}, allowed {allowed}")
    some = "; ".join(words) + "; ..." * (len(worst) > 2)
    count, verdict = f"{len(worst)} of {len(found)}", overall(line.verdict for line in found)
    return verdict, {
        Verdict.PASS: f"all {len(found)} exponents lie in their bands; nearest to an edge: {words[0]}",
        Verdict.FAIL: f"{count} exponents lie outside their bands: {some}",
        Verdict.UNCLEAR: f"{count} intervals cross an edge of their bands (more seeds, or sizes further apart, would "
        f"tell): {some}",
    }[verdict]


def exit_code(findings: Iterable[Finding]) -> int:
    """Exit status of a verb: 3 if anything is a FAIL, else 4 if anything is UNCLEAR, else 0 (1 and 2 are errors)."""
    return {Verdict.PASS: 0, Verdict.FAIL: 3, Verdict.UNCLEAR: 4}[overall(finding.verdict for finding in findings)]


NAMES = {"sp": "SP", "gpt2": "SP as GPT-2", "sp_embedding": "SP, embeddings × r_n", "mup": "recipe"}
"""Parametrization -> what tables and figures call it."""


def title(parametrization: str, branch_depth: int) -> str:
    """A parametrization as tables and figures call it, with its k; all k >= 2 agree."""
    return NAMES[parametrization] + f", k {'= 1' if branch_depth == 1 else '≥ 2'}" * (parametrization == "mup")


def six_digits(values: Any) -> Any:
    """Nested lists and dictionaries of numbers with six digits each: plenty, and half the size of the file."""
    return json.loads(json.dumps(values), parse_float=lambda text: float(f"{float(text):.6g}"))
