"""The drawings of feature norms. No pyplot: nothing here needs a screen or leaves state behind."""

from __future__ import annotations

from pathlib import Path

from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from mup_lightning.studies.features.report import Row, Run, check_point, in_order

DPI = 140
STEPS_SHOWN = 12
"""Lines in a panel over depth at most: more steps are thinned evenly."""

WHAT = {
    "embedding": "embedding",
    "attention": "attention branch",
    "attention_scaled": "attention branch × multiplier",
    "mlp": "MLP branch",
    "mlp_scaled": "MLP branch × multiplier",
    "residual": "residual stream",
    "final_norm": "final LayerNorm",
    "logits": "logits",
}
"""The points in words, in the order of the forward pass."""

OVERVIEW = ("attention_scaled", "mlp_scaled", "residual", "embedding", "final_norm", "logits")
"""What is drawn of one run. A branch without its multiplier has the same shape, so it would say nothing more."""


def _sequence(n: int) -> list[tuple[float, float, float, float]]:
    """Colours from light (small) to dark (large), told apart by the colour-blind and in print."""
    return [colormaps["viridis"](0.85 * (1 - i / max(1, n - 1))) for i in range(n)]


_OVER_STEPS = LinearSegmentedColormap.from_list("steps", _sequence(64))


def draw_comparison(rows: list[Row], point: str, file: Path) -> None:
    """Draw norms over steps, one line per size: a row of panels per way of growing, a panel per parametrization.

    Args:
        rows: see `feature_norms.compare`.
        point: what was measured.
        file: the picture; its ending says the format.
    """
    names = in_order({panel.parametrization for row in rows for panel in row.panels})
    figure = Figure(figsize=(max(7.0, 1.2 + 3.9 * len(names)), 1.1 + 2.7 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), len(names), sharex=True, sharey=True, squeeze=False)
    for row, axes in zip(rows, grid, strict=True):
        _draw_row(row, dict(zip(names, axes, strict=True)))
    for column in grid.T:
        next(ax for ax in reversed(column) if ax.get_visible()).tick_params(labelbottom=True)
    where = "the last block's output" if point == "residual" else WHAT.get(point, point)
    figure.supylabel(f"RMS norm of {where}", fontsize=11)
    figure.supxlabel("training step", fontsize=11)
    figure.suptitle(
        "Feature norms while training, one line per model size\nμP asks that the lines of all sizes lie on each other",
        fontsize=12,
    )
    figure.savefig(file, dpi=DPI)


def _draw_row(row: Row, axes: dict[str, Axes]) -> None:
    colors = dict(zip(row.sizes, _sequence(len(row.sizes)), strict=True))
    panels = {panel.parametrization: panel for panel in row.panels}
    legend: dict[str, Artist] = {}
    for name, ax in axes.items():
        if name not in panels:
            ax.set_visible(False)
            continue
        for size, curve in panels[name].lines:
            # Small models are drawn first and broad, so that lines that coincide can all be seen.
            breadth = 1.4 + 2.6 * (1 - row.sizes.index(size) / max(1, len(row.sizes) - 1))
            (legend[size],) = ax.plot(*zip(*curve, strict=True), color=colors[size], linewidth=breadth)
        ax.set_title(f"{name}: {row.varying} grows" + (f", {row.fixed}" if row.fixed else ""), fontsize=11)
        _style(ax)
        if (spread := panels[name].spread()) is not None:
            text = f"step {spread[0]}: largest norm {spread[1]:.3g} × the smallest"
            ax.text(0.97, 0.04, text, transform=ax.transAxes, ha="right", va="bottom", fontsize=9.5)
    visible = [ax for ax in axes.values() if ax.get_visible()]
    visible[0].tick_params(labelleft=True)
    visible[-1].legend(
        [legend[size] for size in row.sizes],
        row.sizes,
        title=row.varying,
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),
        frameon=False,
    )


def draw_run(run: Run, file: Path, point: str | None = None) -> None:
    """Draw one run's norms across depth, one line per logged step, and those outside blocks over the steps.

    Args:
        run: the run.
        file: the picture; its ending says the format.
        point: only this one; None: an overview.

    Raises:
        UserError: the run has no such point.
    """
    if point is not None:
        check_point([run], point)
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
        key = ScalarMappable(Normalize(0, max(1, steps[-1])), _OVER_STEPS)
        figure.colorbar(key, ax=grid, label="training step", shrink=0.6, ticks=MaxNLocator(5, integer=True))
    what = f"{run.parametrization}, width {run.shape[0]}, depth {run.shape[1]}, {run.config.recipe.optimizer}"
    figure.suptitle(
        f"Feature norms of {run.name} ({what})\n"
        "healthy: a branch is about as large in every block, and nothing runs away while training",
        fontsize=12,
    )
    figure.savefig(file, dpi=DPI)


def shown_steps(run: Run) -> list[int]:
    """The steps that are shown across depth: evenly chosen from those logged, with the first and the last."""
    steps = sorted({step for layers in run.norms.values() for curve in layers.values() for step, _ in curve})
    if len(steps) <= STEPS_SHOWN:
        return steps
    return [steps[round(i * (len(steps) - 1) / (STEPS_SHOWN - 1))] for i in range(STEPS_SHOWN)]


def _draw_depth(ax: Axes, run: Run, point: str, steps: list[int]) -> None:
    layers = {layer: dict(curve) for layer, curve in run.norms[point].items() if layer is not None}
    # What the first block is given, h_0, is the residual stream too.
    start = dict(run.norms.get("embedding", {}).get(None, [])) if point == "residual" else {}
    marker = "o" if len(layers) <= 16 else None
    for step in steps:
        heights = [(layer + 1, curve[step]) for layer, curve in sorted(layers.items()) if step in curve]
        if step in start:
            heights.insert(0, (0, start[step]))
        color = _OVER_STEPS(step / max(1, steps[-1]))
        ax.plot(
            [x for x, _ in heights], [y for _, y in heights], color=color, linewidth=1.6, marker=marker, markersize=3
        )
    ax.set_title(WHAT.get(point, point) + (" (0: embedding)" if start else ""), fontsize=11)
    ax.set(xlabel="block", ylabel="RMS norm")
    _style(ax)


def _draw_outside(ax: Axes, run: Run, points: list[str]) -> None:
    for point, style in zip(points, ("-", "--", ":"), strict=False):
        curve = run.norms[point][None]
        ax.plot(*zip(*curve, strict=True), style, color="black", linewidth=1.6, label=WHAT.get(point, point))
    ax.set_title("outside the blocks", fontsize=11)
    ax.set(xlabel="training step", ylabel="RMS norm")
    _style(ax)
    ax.set_ylim(top=4 * ax.get_ylim()[1])  # room above all lines (the axis is logarithmic)
    ax.legend(loc="upper center", ncols=3, frameon=False, fontsize=9, handlelength=1.6, columnspacing=0.9)


def _style(ax: Axes) -> None:
    """A logarithmic scale of plain numbers."""
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.grid(True, color="0.9", linewidth=0.8)
    ax.spines[["top", "right"]].set_visible(False)
