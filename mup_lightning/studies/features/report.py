"""`mup-lightning figure`: draws the feature norms of trained runs. Imports no torch."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mup_lightning.errors import UserError
from mup_lightning.studies import style
from mup_lightning.studies.features import Row, Run, compare, other_differences, read_run, spread
from mup_lightning.typed import Picture, Typed

STEPS_SHOWN = 12
"""Most lines in a panel over depth: more steps are thinned evenly."""

WHAT = {
    "attention": "attention branch",
    "attention_scaled": "attention branch × multiplier",
    "mlp": "MLP branch",
    "mlp_scaled": "MLP branch × multiplier",
    "residual": "residual stream",
    "final_norm": "final LayerNorm",
}
"""Points in words, where these are others than their names."""

OVERVIEW = ("attention_scaled", "mlp_scaled", "residual", "embedding", "final_norm", "logits")
"""What is drawn of one run. A branch without its multiplier has the same shape, so it would say nothing more."""


@dataclass
class FigureSettings(Typed, prefix="--"):
    """What is drawn: one run across depth at several steps, or several runs as one line per size over the steps.

    Attributes:
        runs: folders of finished or running runs, each with a config.yaml.
        point: what was measured: embedding, attention, attention_scaled, mlp, mlp_scaled, residual, final_norm or
            logits; null: an overview of one run, and residual, in the last block, of several.
        out: the picture, .png, .pdf or .svg; null: feature_norms.png, in the run's folder if there is one run.
    """

    runs: list[Path]
    point: str | None = None
    out: Picture | None = None


def run(settings: FigureSettings) -> int:
    """Draw feature norms, and say where the picture is."""
    alone = len(settings.runs) == 1
    out = settings.out or (settings.runs[0] if alone else Path()) / "feature_norms.png"
    point = settings.point if alone else settings.point or "residual"
    runs = [read_run(folder, point) for folder in settings.runs]
    if not out.parent.is_dir():
        raise UserError(f"--out is {out}, but there is no folder {out.parent}; make it first")
    if point is None or alone:
        figure = run_figure(runs[0], point)
    else:
        rows = compare(runs)
        figure = comparison_figure(rows, point)
        for row in rows:
            for name, panel in row.panels().items():
                if found := spread([run.last(point) for run in panel]):
                    sizes = f"{row.varying} {row.size(panel[0])} to {row.size(panel[-1])}{row.fixed}"
                    what = f"at step {found[0]} the largest norm is {found[1]:.3g} times the smallest"
                    print(f"{name}, {sizes}: {what}")
        if left_out := [run.name for run in runs if not any(run in row.runs for row in rows)]:
            names = ", ".join(left_out)
            print(f"note: not drawn, because no other run shares their width or depth: {names}", file=sys.stderr)
        if differing := other_differences(runs):
            print(f"note: the runs also differ in {', '.join(differing)}", file=sys.stderr)
    print(f"wrote {style.save(figure, out)}")
    return 0


def comparison_figure(rows: list[Row], point: str) -> Figure:
    """Norms over steps, one line per size: a row of panels per way of growing, a panel per parametrization."""
    names = sorted({name for row in rows for name in row.panels()})
    figure = Figure(figsize=(max(7.0, 1.2 + 3.9 * len(names)), 1.1 + 2.7 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), len(names), sharex=True, sharey=True, squeeze=False)
    for row, axes in zip(rows, grid, strict=True):
        for name, ax in zip(names, axes, strict=True):
            _draw_sizes(ax, row, name, point)
        axes[-1].legend(title=row.varying, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    where = "the last block's output" if point == "residual" else WHAT.get(point, point)
    figure.supylabel(f"RMS norm of {where}", fontsize=11)
    figure.supxlabel("training step", fontsize=11)
    asked = "μP asks that the lines of all sizes lie on each other"
    figure.suptitle(f"Feature norms while training, one line per model size\n{asked}", fontsize=12)
    return figure


def _draw_sizes(ax: Axes, row: Row, name: str, point: str) -> None:
    sizes = list(dict.fromkeys(map(row.size, row.runs)))
    ax.tick_params(labelbottom=True, labelleft=True)
    looks: dict[str, dict[str, Any]] = {}
    for place, size in enumerate(sizes):
        large = place / max(1, len(sizes) - 1)
        # Small models are drawn first and broad, so that lines that coincide can all be seen.
        looks[size] = {"color": style.STEPS(large), "linewidth": 1.4 + 2.6 * (1 - large)}
        ax.plot([], [], label=size, **looks[size])
    runs = row.panels().get(name)
    if runs is None:
        ax.set_axis_off()  # the legend stays
        return
    for run in runs:
        ax.plot(*zip(*run.last(point), strict=True), **looks[row.size(run)])
    ax.set_title(f"{name}: {row.varying} grows{row.fixed}", fontsize=11)
    _style(ax)
    if found := spread([run.last(point) for run in runs]):
        words = f"step {found[0]}: largest norm {found[1]:.3g} × the smallest"
        ax.text(0.97, 0.04, words, transform=ax.transAxes, ha="right", va="bottom", fontsize=9.5)


def run_figure(run: Run, point: str | None = None) -> Figure:
    """One run's norms across depth, one line per logged step, and those outside blocks over the steps.

    `point`: this one alone; None: an overview.
    """
    points = [point] if point is not None else [name for name in OVERVIEW if name in run.norms]
    outside = [name for name in points if None in run.norms[name]]
    inside = [name for name in points if name not in outside]
    panels = len(inside) + bool(outside)
    columns = min(2, panels)
    rows = -(-panels // columns)
    figure = Figure(figsize=(7.0 if columns == 1 else 9.0, 1.1 + 2.7 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    steps = shown_steps(run)
    for name, ax in zip(inside, grid.flat, strict=False):
        _draw_depth(ax, run, name, steps)
    if outside:
        _draw_outside(grid.flat[len(inside)], run, outside)
    for ax in grid.flat[panels:]:
        ax.set_visible(False)
    if inside:
        style.step_key(figure, list(grid.flat), steps[-1])
    what = f"{run.parametrization}, width {run.shape[0]}, depth {run.shape[1]}, {run.config.recipe.optimizer}"
    healthy = "healthy: a branch is about as large in every block, and nothing runs away while training"
    figure.suptitle(f"Feature norms of {run.name} ({what})\n{healthy}", fontsize=12)
    return figure


def shown_steps(run: Run) -> list[int]:
    """The steps that are shown across depth: evenly chosen from those logged, with the first and the last."""
    steps = sorted({step for layers in run.norms.values() for curve in layers.values() for step, _ in curve})
    places = [round(i * (len(steps) - 1) / (STEPS_SHOWN - 1)) for i in range(STEPS_SHOWN)]
    return [steps[place] for place in dict.fromkeys(places)]


def _draw_depth(ax: Axes, run: Run, point: str, steps: list[int]) -> None:
    layers = {layer + 1: dict(curve) for layer, curve in run.norms[point].items() if layer is not None}
    # What the first block is given, h_0, is the residual stream too.
    if point == "residual" and "embedding" in run.norms:
        layers[0] = dict(run.norms["embedding"][None])
    for step in steps:
        heights = [(block, curve[step]) for block, curve in sorted(layers.items()) if step in curve]
        marker = "o" if len(layers) <= 16 else None
        color = style.STEPS(step / max(1, steps[-1]))
        ax.plot(*zip(*heights, strict=True), color=color, linewidth=1.6, marker=marker, markersize=3)
    ax.set_title(WHAT.get(point, point) + (" (0: embedding)" if 0 in layers else ""), fontsize=11)
    ax.set(xlabel="block", ylabel="RMS norm")
    _style(ax)


def _draw_outside(ax: Axes, run: Run, points: list[str]) -> None:
    for point, line in zip(points, ("-", "--", ":"), strict=False):
        curve = run.norms[point][None]
        ax.plot(*zip(*curve, strict=True), line, color="black", linewidth=1.6, label=WHAT.get(point, point))
    ax.set_title("outside the blocks", fontsize=11)
    ax.set(xlabel="training step", ylabel="RMS norm")
    _style(ax)
    ax.set_ylim(top=4 * ax.get_ylim()[1])  # room above all lines (the axis is logarithmic)
    ax.legend(loc="upper center", ncols=3, frameon=False, fontsize=9, handlelength=1.6, columnspacing=0.9)


def _style(ax: Axes) -> None:
    style.log_values(ax)
    style.decorate(ax)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
