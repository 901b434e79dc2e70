"""The drawing of a probe: ‖A‖_R against width and against depth, what was fitted and what is declared."""

from __future__ import annotations

import textwrap
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from mup_lightning.studies.probe.report import plus_minus, signed

DPI = 130

COLORS = {"first": "#d55e00", "later": "#0072b2"}
"""Told apart by the colour-blind."""

MARKERS = {"first": "s", "later": "o"}

LABELS = {"first": "step 1", "later": "later steps"}

TITLES = {
    "input": "input matrix",
    "hidden": "hidden matrices",
    "output": "output matrix",
    "input_bias": "input bias",
    "hidden_bias": "hidden biases",
}


def draw_probe(result: dict[str, Any], file: Path) -> None:
    """Draw one probe.

    Args:
        result: from `probe_results.read_probe`.
        file: the picture; its ending says the format.
    """
    picture(result).savefig(file, dpi=DPI)


def picture(result: dict[str, Any]) -> Figure:
    """A column per role, width above depth. Each curve is shown relative to its smallest network."""
    roles = [role for role in TITLES if any(role in by_role for by_role in result["fits"].values())]
    figure = Figure(figsize=(1.2 + 2.9 * len(roles), 6.6), layout="constrained")
    grid = figure.subplots(2, len(roles), squeeze=False, sharey="row")
    for column, role in enumerate(roles):
        for row, axis in enumerate(("width", "depth")):
            ax = grid[row, column]
            _draw(ax, result, role, axis)
            if row == 0:
                ax.set_title(TITLES[role], fontsize=12, pad=10)
    settings = result["settings"]
    for row, axis in enumerate(("width", "depth")):
        grid[row, 0].set_ylabel(f"‖A‖_R, relative to {axis} {settings[f'{axis}s'][0]}")
        _make_room(grid[row, 0])
    handles: dict[str, Any] = {}
    for ax in grid.flat:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), frameon=False)
    title = f"How the raw step A of {result['optimizer']} grows with the network (‖·‖_R: RMS operator norm)"
    wide = 34 * len(roles)
    figure.suptitle(f"{title}\n{textwrap.fill(result['sentence'], wide)}", fontsize=11)
    return figure


def curves(result: dict[str, Any], role: str, axis: str, window: str) -> dict[int, list[float]]:
    """Size -> ‖A‖_R of every seed, along the line on which only this axis varies."""
    settings = result["settings"]
    other, fixed = ("depth", settings["depths"][0]) if axis == "width" else ("width", settings["widths"][0])
    found: dict[int, list[float]] = defaultdict(list)
    for network in result["networks"]:
        value = network["roles"][role]["windows"][window]
        if network[other] == fixed and value is not None:
            found[network[axis]].append(value)
    return dict(sorted(found.items()))


def _draw(ax: Axes, result: dict[str, Any], role: str, axis: str) -> None:
    declared = {cell["declared"] for cell in result["cells"] if cell["role"] == role and cell["axis"] == axis}
    texts = []
    sizes = np.array(result["settings"][f"{axis}s"], dtype=float)
    for window, color in COLORS.items():
        fit = result["fits"].get(window, {}).get(role, {}).get(axis)
        if fit is None:
            continue
        by_size = curves(result, role, axis, window)
        means = np.array([np.exp(np.mean(np.log(values))) for values in by_size.values()])
        # The fitted line goes through the middle of the points.
        middle = np.exp(np.log(means).mean() - fit["exponent"] * np.log(sizes).mean())
        unit = middle * sizes[0] ** fit["exponent"]
        shift = 0.97 if window == "first" else 1.03  # both windows stay visible where they agree
        for size, values in by_size.items():
            ax.plot([size * shift] * len(values), np.array(values) / unit, ".", color=color, alpha=0.3, markersize=5)
        ax.plot(
            sizes * shift,
            means / unit,
            MARKERS[window],
            color=color,
            markersize=5,
            label=f"measured, {LABELS[window]} (pale: single seeds)",
        )
        ax.plot(sizes, (sizes / sizes[0]) ** fit["exponent"], "-", color=color, linewidth=1.4)
        texts.append((f"{LABELS[window]}: {plus_minus(fit)}", color))
    for slope in declared:
        ax.plot(sizes, (sizes / sizes[0]) ** slope, "--", color="black", linewidth=1.6, label="declared slope")
        texts.append((f"declared: {signed(slope)}", "black"))
    for line, (text, color) in enumerate(texts):
        ax.text(0.04, 0.96 - 0.085 * line, text, color=color, transform=ax.transAxes, fontsize=9.5, va="top")
    ax.set_xlabel(axis)
    _style(ax, sizes)


def _make_room(ax: Axes) -> None:
    """Show a factor of 6 at least, so that small noise looks small, and leave the upper part to the text."""
    low, high = np.log(ax.get_ylim())
    low, high = min(low, -0.9), max(high, 0.9)
    ax.set_ylim(np.exp(low), np.exp(high + 0.4 * (high - low)))
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))


def _style(ax: Axes, sizes: np.ndarray) -> None:
    ax.set(xscale="log", yscale="log")
    ax.xaxis.set_major_locator(FixedLocator(list(sizes)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.grid(True, color="0.92", linewidth=0.8)
    ax.spines[["top", "right"]].set_visible(False)
