"""Judges a coordinate check, and shows it as text, as a Markdown table of many, and as a figure. Imports no torch."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mup_lightning import tables
from mup_lightning.config.schema import Config
from mup_lightning.errors import located
from mup_lightning.files import read_json
from mup_lightning.studies import scaling, style
from mup_lightning.studies.coordinates import SYMBOLS, CheckSettings
from mup_lightning.studies.scaling import Band, Finding, Label, Line, Result, Run, Shape, Verdict
from mup_lightning.typed import build

FILE = "coordinates.json"

AXES = {"width": "width n", "depth": "depth L", "both": "growth of width and depth, r", "experts": "experts E"}

QUANTITIES = {
    "init": ("norms", 0, "at initialisation"),
    "feature": ("norms", -1, "after the last step"),
    "change": ("changes", -1, "its change after the last step"),
}
"""What is fitted of a feature: ‖h₀‖_R, ‖h_T‖_R and ‖h_T − h₀‖_R -> its curve, the place on that, and words."""

FEATURES = ("attention, last block", "mlp, last block", "residual, last block", "logits")
"""Features shown in the table and the figure; the verdict counts all of them."""

CURVES = {"norms": ("feature", "‖h‖_R"), "changes": ("change", "‖h − h₀‖_R")}
"""Curve -> the quantity that is judged after its last step, and its symbol."""


@dataclass(frozen=True, kw_only=True)
class Check(Result):
    """A finished coordinate check; the first finding is about the parametrization that was asked for."""

    settings: CheckSettings
    config: Config

    @property
    def asked(self) -> Finding:
        """The conclusion about the parametrization that was asked for."""
        return self.findings[0]

    @property
    def sizes(self) -> dict[Shape, float]:
        """(width, depth) -> what exponents are fitted against, from small to large."""
        return self.settings.sizes(self.config.model.width, self.config.model.depth)

    def title(self, finding: Finding) -> str:
        """The parametrization that a finding is about."""
        return scaling.title(finding.of[0], self.config.recipe.branch_depth)


def read_check(file: Path) -> Check:
    """Read a coordinates.json. Raises UserError where it is missing, damaged, or not the result of such a check."""
    expected = "a result of this version of mup-lightning coord-check"
    found = read_json(file, expected)
    with located(f"{file} is not {expected}"):
        return build(Check, found)


def band(label: Label, settings: CheckSettings, *, layer_norm: bool = True) -> Band:
    """Lowest and highest exponent that is accepted.

    After the last step nothing may grow, and nothing shrink: a change that vanishes with size belongs to a part of the
    model that has stopped learning. Before the first step nothing may grow, but sums of random terms do shrink: L
    branches of size 1/L add up to 1/√L next to the embedding, and n products of a feature with the head's random
    weights, over n, to logits of 1/√n. Nothing shrinks faster than that, and the rest not at all. A router's logits
    are as the head's.

    `label` is (feature, one of `QUANTITIES`); with `layer_norm` branches and head receive the residual stream at a
    constant norm.
    """
    feature, quantity = label
    if quantity != "init":
        most = settings.feature_band if quantity == "feature" else settings.change_band
        return -most, most
    point, _, place = feature.partition(", ")
    least = -0.5 if settings.axis in ("width", "both") and point in ("logits", "router") else 0.0
    # The stream is the sum of branches, which falls with depth. A LayerNorm removes its size, but not its composition,
    # on which attention depends: measured from 16 to 64 blocks it falls as L^-0.17 in the last one, as the stream does,
    # while MLP branches, the final norm and the logits stay within L^±0.01.
    before = feature == "embedding" or (place == "first block" and point != "residual")
    if settings.axis in ("depth", "both") and not before and (not layer_norm or point in ("residual", "attention")):
        least -= 0.5
    return least - settings.growth_at_init, settings.growth_at_init


def said(shape: Shape) -> str:
    """A size in words."""
    words = zip(("width", "depth", "experts"), shape, strict=False)
    return ", ".join(f"{name} {size}" for name, size in words)


def conclude(
    runs: list[Run], sizes: dict[Shape, float], settings: CheckSettings, *, layer_norm: bool = True
) -> Finding:
    """Judge the trainings of one parametrization, of the same seeds at every size, from small to large; see `band`."""

    def values(run: Run) -> dict[Label, float]:
        return {
            (feature, quantity): run.measured[kind][feature][place]
            for quantity, (kind, place, _) in QUANTITIES.items()
            for feature in run.measured[kind]
        }

    def where(line: Line) -> str:
        feature, quantity = line.label
        return f"{feature}, {QUANTITIES[quantity][2]}: " + (f"{SYMBOLS[settings.axis]}^" if line.fit else "")

    lost = [shape for shape in sizes if any(run.diverged for run in runs if run.shape == shape)]
    sound = {shape: size for shape, size in sizes.items() if shape not in lost}
    bands = partial(band, settings=settings, layer_norm=layer_norm)
    found = scaling.lines(runs, sound, values, bands) if len(sound) > 2 else []
    names = list(map(said, lost))
    if not lost:
        verdict, sentence = scaling.conclude(decisive := _decisive(found), where)
        sentence = sentence if decisive is found else f"before the first step {sentence}"
    elif lost[0] == next(iter(sizes)):
        verdict, sentence = Verdict.UNCLEAR, f"training diverges at the smallest size already, {names[0]}: "
        sentence += "the base learning rate is too large, and says nothing about growth"
    else:
        verdict = Verdict.FAIL
        sentence = f"training diverges at {' and at '.join(names)}, but not at the smallest size"
        sentence += "; exponents are of the other sizes" if found else ""
    notes = [f"diverged: {run.shape} seed {run.seed}: {run.diverged}" for run in runs if run.diverged]
    return Finding(runs[0].of, verdict, sentence, found, notes)


def _decisive(found: Sequence[Line]) -> Sequence[Line]:
    """The lines before the first step if one of them fails: what happens in training follows from it. Else all."""
    starts = [line for line in found if line.label[1] == "init"]
    return starts if any(line.verdict is Verdict.FAIL for line in starts) else found


def worst(found: Sequence[Line]) -> Line:
    """The line that decides."""
    return scaling.deciding(_decisive(found))[0]


def text(check: Check) -> str:
    """One check for the terminal: every exponent of the parametrization that was asked for, and all verdicts."""
    asked, symbol = check.asked, SYMBOLS[check.settings.axis]
    parts = []
    if asked.lines:
        rows = [["feature", "at init", f"after {check.config.trainer.max_steps} steps", "its change"]]
        for feature in dict.fromkeys(line.label[0] for line in asked.lines):
            rows.append([feature, *(asked.cell(feature, quantity) for quantity in QUANTITIES)])
        marks = "(✗ outside its band, ? unclear)"
        parts.append(f"exponents of {symbol} with 95 % intervals, {check.title(asked)} {marks}\n{tables.text(rows)}")
    for one in reversed(check.findings):
        parts.append("\n  ".join([f"{check.title(one)}: {one.verdict}: {one.sentence}", *one.notes]))
    return "\n\n".join(parts)


def markdown(checks: Sequence[Check]) -> str:
    """Many checks as one table, with a row for every optimizer, axis, sizes, parametrization and base learning rate.

    Of several checks of one row, such as SP next to k = 1 and to k = 2, the one that was asked for wins, else the last.
    """
    rows: dict[tuple[object, ...], list[str]] = {}
    pairs = [(check, finding) for check in checks for finding in check.findings]
    for check, finding in sorted(pairs, key=lambda pair: pair[1] is pair[0].asked):
        recipe, axis, name = check.config.recipe, check.settings.axis, check.title(finding)
        optimizer = recipe.optimizer + ("" if check.config.model.layer_norm else ", no LayerNorm")
        optimizer += ", experts" if check.config.model.experts else ""
        optimizer += ", measured variant" if recipe.variant == "measured" else ""
        smallest, *_, largest = check.sizes if axis == "both" else check.sizes.values()
        sizes = f"{axis} {smallest} to {largest}"
        seeds = check.settings.seeds if finding is check.asked else check.settings.of_controls
        rows[optimizer, list(AXES).index(axis), sizes, recipe.lr, name != "SP", name] = [
            optimizer,
            sizes,
            name,
            tables.power_of_two(recipe.lr),
            str(seeds),
            *(f"{finding.cell(one, 'feature')} ({finding.cell(one, 'change')})" for one in FEATURES),
            f"**{finding.verdict}**: {finding.sentence}",
        ]
    head = ["optimizer", "axis", "parametrization", "base lr", "seeds", *FEATURES, "verdict"]
    return tables.markdown([head, *(rows[key] for key in sorted(rows))])


def picture(check: Check) -> Figure:
    """A row per feature: its norm under SP and under the recipe on one scale, then its change likewise."""
    shown, axis = drawn_features(check), check.settings.axis
    findings = sorted(check.findings, key=lambda finding: finding.of != ("sp",))
    columns = [(kind, finding) for kind in CURVES for finding in findings]
    figure = Figure(figsize=(1.4 + 3.0 * len(columns), 1.6 + 2.35 * len(shown)), layout="constrained")
    grid = figure.subplots(len(shown), len(columns), squeeze=False, sharex=True)
    for feature, axes in zip(shown, grid, strict=True):
        for ax, (kind, finding) in zip(axes, columns, strict=True):
            _draw(ax, check, feature, kind, finding)
        for together in np.split(axes, len(CURVES)):
            style.share_scale(list(together), list(check.sizes.values()))
        axes[0].set_ylabel(feature, fontsize=11)
    for ax, (kind, finding) in zip(grid[0], columns, strict=True):
        ax.set_title(f"{check.title(finding)}: {CURVES[kind][1]}", fontsize=11)
    for ax in grid[-1]:
        ax.set_xlabel(AXES[axis])
    style.step_key(figure, list(grid.flat), check.config.trainer.max_steps)
    words = [f"Coordinate check of {check.config.recipe.optimizer}: μP asks for level lines at every step"]
    for one in findings:
        words += textwrap.wrap(f"{check.title(one)}: {one.verdict}: {one.sentence}", 34 * len(columns))
    figure.suptitle("\n".join(words), fontsize=11)
    return figure


def drawn_features(check: Check) -> list[str]:
    """`FEATURES`, and the one that decides, in place of its kind or below."""
    decides = [worst(check.asked.lines).label[0]] if check.asked.lines else []
    return list({name.split(",")[0]: name for name in (*FEATURES, *decides)}.values())


def _draw(ax: Axes, check: Check, feature: str, kind: str, finding: Finding) -> None:
    """Every step's mean over the seeds against size, and single seeds at the last step."""
    last = check.config.trainer.max_steps
    for step in range(1 if kind == "changes" else 0, last + 1):
        values = {}
        for shape, size in check.sizes.items():
            curves = [
                run.measured[kind].get(feature, []) for run in check.runs if (run.of, run.shape) == (finding.of, shape)
            ]
            if all(len(curve) > step and curve[step] > 0 for curve in curves):
                values[size] = [curve[step] for curve in curves]
        if values:
            color = style.STEPS(step / last)
            seeds = list(zip(*values.values(), strict=True))
            style.points(ax, list(values), seeds, color, seeds=step == last, markersize=2.5)
    line = finding.line(feature, CURVES[kind][0])
    words = f"step {last}: {line.number} {line.verdict}" if line else "diverges"
    style.write(ax, [(words, style.VERDICTS[line.verdict if line and line.verdict else Verdict.FAIL])])
