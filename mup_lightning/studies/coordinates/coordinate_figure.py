"""The drawing of a coordinate check: feature norms against size, a line a step, SP beside the recipe."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from mup_lightning import tables
from mup_lightning.studies.coordinates.coordinate_results import curves, exponents, title

DPI = 120

FEATURES = ("residual, last block", "attention, last block", "mlp, last block", "logits")
"""What is drawn, unless another feature decided the verdict: it then takes the place of its kind, or comes below."""

KINDS = {"norms": ("feature", "‖h‖_R"), "changes": ("change", "‖h − h₀‖_R")}
"""Curve -> the quantity that is judged after its last step, and its name on the axis."""

AXES = {"width": "width n", "depth": "depth L", "both": "growth of width and depth, r"}

COLORS = {"PASS": "#1b7837", "INCONCLUSIVE": "#8a6d00", "FAIL": "#b2182b"}

_STEPS = LinearSegmentedColormap.from_list("steps", [colormaps["viridis"](0.9 * (1 - i / 63)) for i in range(64)])
"""From light, the start, to dark, the last step: told apart by the colour-blind and in print."""


def draw_check(result: dict[str, Any], file: Path) -> None:
    """Draw one check.

    Args:
        result: from `coordinate_results.read_check`.
        file: the picture; its ending says the format.
    """
    picture(result).savefig(file, dpi=DPI)


def picture(result: dict[str, Any]) -> Figure:
    """A row per feature; the norm under SP and the recipe on one scale, then its change likewise."""
    shown = drawn_features(result)
    names = sorted(result["checks"], key=lambda name: name != "sp")
    columns = [(kind, name) for kind in KINDS for name in names]
    figure = Figure(figsize=(1.4 + 3.0 * len(columns), 1.6 + 2.35 * len(shown)), layout="constrained")
    grid = figure.subplots(len(shown), len(columns), squeeze=False, sharex=True)
    for feature, axes in zip(shown, grid, strict=True):
        for start in range(0, len(columns), len(names)):
            together = axes[start : start + len(names)]
            for ax, (kind, name) in zip(together, columns[start:], strict=False):
                _draw(ax, result, feature, kind, name)
            low = min(ax.get_ylim()[0] for ax in together)
            high = max(ax.get_ylim()[1] for ax in together)
            for ax in together:
                _style(ax, result["sizes"], low, high)
        axes[0].set_ylabel(feature, fontsize=11)
    for ax, (kind, name) in zip(grid[0], columns, strict=True):
        ax.set_title(f"{title(result, name)}: {KINDS[kind][1]}", fontsize=11)
    for ax in grid[-1]:
        ax.set_xlabel(AXES[result["axis"]])
    steps = max(len(run["losses"]) for run in result["runs"])
    key = ScalarMappable(Normalize(0, max(1, steps)), _STEPS)
    figure.colorbar(key, ax=grid, label="training step", shrink=0.5, ticks=MaxNLocator(5, integer=True))
    verdicts = [
        f"{title(result, name)}: {result['checks'][name]['verdict']}: {result['checks'][name]['sentence']}"
        for name in names
    ]
    head = f"Coordinate check of {result['config']['recipe']['optimizer']}: μP asks for level lines at every step"
    lines = [line for verdict in verdicts for line in textwrap.wrap(verdict, 34 * len(columns))]
    figure.suptitle("\n".join([head, *lines]), fontsize=11)
    return figure


def drawn_features(result: dict[str, Any]) -> list[str]:
    """The usual ones, and the one that decided the verdict that was asked for."""
    worst = result["checks"][result["asked"]]["worst"]
    if worst is None:
        return list(FEATURES)
    point = worst["feature"].split(",")[0]
    kinds = {name.split(",")[0]: name for name in FEATURES} | {point: worst["feature"]}
    return list(kinds.values())


def _draw(ax: Axes, result: dict[str, Any], feature: str, kind: str, name: str) -> None:
    by_size = curves(result, name, feature, kind)
    sizes = result["sizes"]
    steps = max((len(curve) for runs in by_size for curve in runs), default=1) - 1
    for step in range(1 if kind == "changes" else 0, steps + 1):
        points = []
        for size, runs in zip(sizes, by_size, strict=True):
            values = [curve[step] for curve in runs if step < len(curve) and curve[step] > 0]
            if len(values) == len(runs):
                points.append((size, np.exp(np.mean(np.log(values)))))
                if step == steps:
                    ax.plot([size] * len(values), values, ".", color=_STEPS(1.0), alpha=0.35, markersize=4)
        if points:
            ax.plot(*zip(*points, strict=True), "-o", color=_STEPS(step / max(1, steps)), linewidth=1.4, markersize=2.5)
    ax.set_yscale("log")
    one = exponents(result, name).get(feature, {}).get(KINDS[kind][0])
    if one is not None:
        text = "zero" if one["exponent"] is None else tables.plus_minus(one["exponent"], (one["high"] - one["low"]) / 2)
        words = f"step {steps}: {text} {one['verdict']}"
        ax.text(0.03, 0.97, words, color=COLORS[one["verdict"]], transform=ax.transAxes, fontsize=9.5, va="top")
    elif any(run["diverged"] for run in result["runs"] if run["parametrization"] == name):
        ax.text(0.03, 0.97, "diverges", color=COLORS["FAIL"], transform=ax.transAxes, fontsize=9.5, va="top")


def _style(ax: Axes, sizes: list[float], low: float, high: float) -> None:
    """Logarithmic scales with plain numbers; at least a factor of 4, so that small noise looks small; room for text."""
    middle, half = np.sqrt(low * high), max(2.0, np.sqrt(high / low))
    ax.set(xscale="log", ylim=(middle / half, middle * half * (2 * half) ** 0.35))
    ax.xaxis.set_major_locator(FixedLocator(sizes))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if half < 20 else (1,)))
    ax.yaxis.set_minor_formatter(NullFormatter())
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.tick_params(labelsize=8.5)
    ax.grid(True, color="0.92", linewidth=0.8)
    ax.spines[["top", "right"]].set_visible(False)
