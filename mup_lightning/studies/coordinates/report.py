"""Coordinate checks as text, as a Markdown table of many, and as a figure. Imports no torch."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mup_lightning import tables
from mup_lightning.studies import style
from mup_lightning.studies.coordinates.results import CheckResult, Finding
from mup_lightning.studies.coordinates.settings import SYMBOLS, Shape
from mup_lightning.studies.fit import Judgement, Verdict

AXES = {"width": "width n", "depth": "depth L", "both": "growth of width and depth, r"}

MARKS = {Verdict.PASS: "", Verdict.FAIL: " ✗", Verdict.UNCLEAR: " ?"}
"""Mark after an exponent."""

FEATURES = ("attention, last block", "mlp, last block", "residual, last block", "logits")
"""Features shown in the table and the figure; the verdict counts all of them."""

CURVES = {"norms": ("feature", "‖h‖_R"), "changes": ("change", "‖h − h₀‖_R")}
"""Curve -> the quantity that is judged after its last step, and its symbol."""

TITLES = ("SP", "recipe, k = 1", "recipe, k ≥ 2")
"""Parametrizations; all k >= 2 agree."""


def title(result: CheckResult, parametrization: str) -> str:
    """One of `TITLES`."""
    if parametrization == "sp":
        return TITLES[0]
    return TITLES[1 if result.config.recipe.branch_depth == 1 else 2]


def text(result: CheckResult) -> str:
    """One check for the terminal: every exponent of the parametrization that was asked for, and all verdicts."""
    asked, name = result.asked, result.config.recipe.parametrization
    lines = [""]
    if asked.exponents:
        steps = max(len(run.losses) for run in result.runs if run.parametrization == name)
        rows = [["feature", "at init", f"after {steps} steps", "its change"]]
        for feature in dict.fromkeys(one.label[0] for one in asked.exponents):
            rows.append([feature, *(_cell(asked, feature, quantity) for quantity in ("init", "feature", "change"))])
        lines += [
            f"exponents of {SYMBOLS[result.settings.axis]} with 95 % intervals, {title(result, name)} "
            f"(✗ outside its band, ? unclear){_without(asked)}",
            tables.text(rows),
            "",
        ]
    for one, finding in reversed(result.findings.items()):
        lines.append(f"{title(result, one)}: {finding.verdict}: {finding.sentence}")
    lines += [f"  diverged: {line}" for finding in result.findings.values() for line in finding.diverged]
    return "\n".join(lines)


def markdown(results: Sequence[CheckResult]) -> str:
    """Many checks as one table, with a row for every optimizer, axis, sizes, parametrization and base learning rate.

    Where several checks have the same row, such as SP next to k = 1 and next to k = 2, the one that was asked for wins,
    else the last one.
    """
    rows: dict[tuple[object, ...], list[str]] = {}
    pairs = [(result, name) for result in results for name in result.findings]
    for result, name in sorted(pairs, key=lambda pair: pair[0].findings[pair[1]] is pair[0].asked):
        recipe, finding, axis = result.config.recipe, result.findings[name], result.settings.axis
        optimizer = recipe.optimizer + ("" if result.config.model.layer_norm else ", no LayerNorm")
        optimizer += ", measured variant" if recipe.variant == "measured" else ""
        smallest, *_, largest = result.sizes
        sizes = f"{axis} {_size(smallest, axis)} to {_size(largest, axis)}"
        key = (optimizer, list(AXES).index(axis), sizes, recipe.lr, TITLES.index(title(result, name)))
        rows[key] = [
            optimizer,
            sizes,
            title(result, name),
            tables.power_of_two(recipe.lr),
            str(finding.seeds),
            *(f"{_cell(finding, one, 'feature')} ({_cell(finding, one, 'change')})" for one in FEATURES),
            f"**{finding.verdict}**: {finding.sentence}{_without(finding)}",
        ]
    head = ["optimizer", "axis", "parametrization", "base lr", "seeds", *FEATURES, "verdict"]
    return tables.markdown([head, *(rows[key] for key in sorted(rows))])


def _size(shape: Shape, axis: str) -> str:
    return {"width": str(shape[0]), "depth": str(shape[1]), "both": str(shape)}[axis]


def _without(finding: Finding) -> str:
    """The sizes that the exponents were not fitted to."""
    if not finding.lost or not finding.exponents:
        return ""
    return f"; exponents without width and depth {', '.join(map(str, finding.lost))}"


def _cell(finding: Finding, feature: str, quantity: str) -> str:
    one = finding.exponent(feature, quantity)
    return "–" if one is None else _number(one) + MARKS[one.verdict]


def _number(one: Judgement) -> str:
    return tables.plus_minus(one.fit.exponent, one.fit.half_width) if one.fit else "zero"


def draw(result: CheckResult, file: Path) -> None:
    """Draw one check; the file's ending determines the format."""
    style.save(picture(result), file)


def picture(result: CheckResult) -> Figure:
    """A row per feature: its norm under SP and under the recipe on one scale, then its change likewise."""
    shown = drawn_features(result)
    names = sorted(result.findings, key=lambda name: name != "sp")
    columns = [(kind, name) for kind in CURVES for name in names]
    figure = Figure(figsize=(1.4 + 3.0 * len(columns), 1.6 + 2.35 * len(shown)), layout="constrained")
    grid = figure.subplots(len(shown), len(columns), squeeze=False, sharex=True)
    for feature, axes in zip(shown, grid, strict=True):
        for start in range(0, len(columns), len(names)):
            together = axes[start : start + len(names)]
            for ax, (kind, name) in zip(together, columns[start:], strict=False):
                _draw(ax, result, feature, kind, name)
            _share_scale(together, list(result.sizes.values()))
        axes[0].set_ylabel(feature, fontsize=11)
    for ax, (kind, name) in zip(grid[0], columns, strict=True):
        ax.set_title(f"{title(result, name)}: {CURVES[kind][1]}", fontsize=11)
    for ax in grid[-1]:
        ax.set_xlabel(AXES[result.settings.axis])
    style.step_key(figure, list(grid.flat), max(len(run.losses) for run in result.runs))
    lines = [f"Coordinate check of {result.config.recipe.optimizer}: μP asks for level lines at every step"]
    for name in names:
        finding = result.findings[name]
        sentence = f"{title(result, name)}: {finding.verdict}: {finding.sentence}"
        lines += textwrap.wrap(sentence, 34 * len(columns))
    figure.suptitle("\n".join(lines), fontsize=11)
    return figure


def drawn_features(result: CheckResult) -> list[str]:
    """`FEATURES`, and the one that decides, in place of its kind or below."""
    kinds = {name.split(",")[0]: name for name in FEATURES}
    worst = result.asked.worst
    return list((kinds | ({worst[0].split(",")[0]: worst[0]} if worst else {})).values())


def _draw(ax: Axes, result: CheckResult, feature: str, kind: str, name: str) -> None:
    """Every step's mean over the seeds against size, and single seeds at the last step."""
    runs = [run for run in result.runs if run.parametrization == name and run.norms]
    by_size = {
        size: [getattr(run, kind)[feature] for run in runs if run.shape == shape]
        for shape, size in result.sizes.items()
    }
    steps = max((len(curve) for of_size in by_size.values() for curve in of_size), default=1) - 1
    for step in range(1 if kind == "changes" else 0, steps + 1):
        points = []
        for size, of_size in by_size.items():
            values = [curve[step] for curve in of_size if step < len(curve) and curve[step] > 0]
            if values and len(values) == len(of_size):
                points.append((size, np.exp(np.mean(np.log(values)))))
                if step == steps:
                    ax.plot([size] * len(values), values, ".", color=style.STEPS(1.0), alpha=0.35, markersize=4)
        if points:
            color = style.STEPS(step / max(1, steps))
            ax.plot(*zip(*points, strict=True), "-o", color=color, linewidth=1.4, markersize=2.5)
    finding = result.findings[name]
    one = finding.exponent(feature, CURVES[kind][0])
    words, verdict = ("diverges", Verdict.FAIL) if finding.diverged else ("", Verdict.PASS)
    if one is not None:
        words, verdict = f"step {steps}: {_number(one)} {one.verdict}", one.verdict
    ax.text(0.03, 0.97, words, color=style.VERDICTS[verdict], transform=ax.transAxes, fontsize=9.5, va="top")


def _share_scale(axes: Sequence[Axes], sizes: list[float]) -> None:
    """One vertical scale: at least a factor of 4, so that small noise looks small, and room for text above."""
    for ax in axes:
        ax.set_yscale("log")
    low, high = min(ax.get_ylim()[0] for ax in axes), max(ax.get_ylim()[1] for ax in axes)
    middle, half = np.sqrt(low * high), max(2.0, np.sqrt(high / low))
    for ax in axes:
        style.log_sizes(ax, sizes)
        style.log_values(ax, (1, 2, 5) if half < 20 else (1,))
        ax.set_ylim(middle / half, middle * half * (2 * half) ** 0.35)
        ax.tick_params(labelsize=8.5)
        style.decorate(ax)
