"""The drawings of the assumption checks: for each assumption its ratio against depth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from mup_lightning import tables
from mup_lightning.studies.assumptions.assumption_results import CLAIMS, FORMULAS, MATRICES, NETWORKS

DPI = 130

COLORS = {"start": "#d55e00", "middle": "#009e73", "end": "#0072b2"}
"""Of the times; told apart by the colour-blind."""

STYLES: tuple[tuple[Any, str], ...] = (
    ("-", "o"),
    ("--", "s"),
    (":", "^"),
    ("-.", "D"),
    ((0, (5, 1, 1, 1, 1, 1)), "v"),
    ((0, (1, 3)), "P"),
)
"""Line and marker of the optimizers, in their order."""

NONLINEARITIES = {"first": "ReLU", "value": "attention's averaging (not judged)", "up": "GELU"}


def draw_assumptions(result: dict[str, Any], folder: Path) -> list[Path]:
    """Draw a picture for each assumption, assumptions_NAME.png. Returns their names."""
    files = []
    for assumption in FORMULAS:
        files.append(folder / f"assumptions_{assumption}.png")
        picture(result, assumption).savefig(files[-1], dpi=DPI)
    return files


def picture(result: dict[str, Any], assumption: str) -> Figure:
    """A row for each network, a column for each of its matrices; the mean over blocks, and the range of the seeds."""
    networks = result["settings"]["networks"]
    columns = {network: matrices(result, network, assumption) for network in networks}
    most = max(map(len, columns.values()))
    width = max(9.0, 1.0 + 2.6 * most)
    figure = Figure(figsize=(width, 1.6 + 2.7 * len(networks)), layout="constrained")
    grid = figure.subplots(len(networks), most, squeeze=False, sharex=True, sharey="row")
    for row, network in enumerate(networks):
        for column, ax in enumerate(grid[row]):
            if column >= len(columns[network]):
                ax.set_visible(False)
                continue
            _draw(ax, result, network, assumption, columns[network][column])
        grid[row, 0].set_ylabel(f"{NETWORKS[network]}\nratio", fontsize=11)
        _set_heights(grid[row, 0], assumption)
    for column in grid.T:
        last = next(ax for ax in reversed(column) if ax.get_visible())
        last.tick_params(labelbottom=True)
        last.set_xlabel("depth L")
    figure.legend(handles=_legend(result), loc="outside lower center", ncols=5, frameon=False)
    figure.suptitle(
        f"Assumption: {CLAIMS[assumption]}.   {FORMULAS[assumption]}\n{_verdicts(result, assumption)}", fontsize=12
    )
    return figure


def matrices(result: dict[str, Any], network: str, assumption: str) -> list[str]:
    """The matrices that this ratio was measured for."""
    run = next(run for run in result["runs"] if run["network"] == network)
    return list(run["times"]["start"][assumption])


def curve(
    result: dict[str, Any], network: str, optimizer: str, assumption: str, matrix: str, time: str
) -> dict[int, list[float]]:
    """Depth -> the ratio of every seed, averaged over the blocks."""
    found: dict[int, list[float]] = {depth: [] for depth in result["settings"]["depths"]}
    for run in result["runs"]:
        if (run["network"], run["optimizer"]) == (network, optimizer):
            found[run["depth"]].append(float(np.mean(run["times"][time][assumption][matrix])))
    return found


def _draw(ax: Axes, result: dict[str, Any], network: str, assumption: str, matrix: str) -> None:
    settings = result["settings"]
    if assumption in ("weights", "features"):
        ax.axhline(settings["least"], color="0.6", linewidth=0.9, linestyle=":")
    for (style, marker), optimizer in zip(STYLES * 2, settings["optimizers"], strict=False):
        for time, color in COLORS.items():
            by_depth = curve(result, network, optimizer, assumption, matrix, time)
            depths, values = list(by_depth), np.array(list(by_depth.values()))
            ax.fill_between(depths, values.min(1), values.max(1), color=color, alpha=0.15, linewidth=0)
            ax.plot(depths, values.mean(1), linestyle=style, marker=marker, markersize=4, color=color, linewidth=1.5)
    title = MATRICES[matrix] + (f"\n{NONLINEARITIES[matrix]}" if assumption == "activation" else "")
    ax.set_title(title, fontsize=11)
    ax.text(0.04, 0.04, _steepest(result, network, assumption, matrix), transform=ax.transAxes, fontsize=9, va="bottom")
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(FixedLocator(settings["depths"]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.grid(True, color="0.92", linewidth=0.8)
    ax.spines[["top", "right"]].set_visible(False)


def _set_heights(ax: Axes, assumption: str) -> None:
    """From 0, so that what looks flat is flat."""
    ax.set_ylim(0, 1.05 if assumption in ("weights", "features") else 1.08 * ax.get_ylim()[1])


def _steepest(result: dict[str, Any], network: str, assumption: str, matrix: str) -> str:
    """The steepest exponent among the lines shown, for each optimizer."""
    lines = []
    for verdict in result["verdicts"]:
        if (verdict["network"], verdict["assumption"]) == (network, assumption):
            shown = [c for c in verdict["cells"] if c["matrix"] == matrix and c["position"] in ("only", "mean")]
            worst = max(shown, key=lambda cell: abs(cell["fit"]["exponent"]))
            exponent, low, high = (worst["fit"][key] for key in ("exponent", "low", "high"))
            lines.append(f"{verdict['optimizer']}: exponent {tables.plus_minus(exponent, (high - low) / 2)}")
    return "\n".join(lines)


def _legend(result: dict[str, Any]) -> list[Line2D]:
    at = result["measured_at"]
    times = [Line2D([], [], color=color, label=f"{time} (step {at[time]})") for time, color in COLORS.items()]
    optimizers = [
        Line2D([], [], color="0.3", linestyle=style, marker=marker, markersize=4, label=optimizer)
        for (style, marker), optimizer in zip(STYLES * 2, result["settings"]["optimizers"], strict=False)
    ]
    return times + optimizers


def _verdicts(result: dict[str, Any], assumption: str) -> str:
    """The verdict for each network and optimizer, in one line."""
    parts = []
    for network in result["settings"]["networks"]:
        words = [
            f"{verdict['optimizer']} {verdict['verdict']}"
            for verdict in result["verdicts"]
            if (verdict["network"], verdict["assumption"]) == (network, assumption)
        ]
        parts.append(f"{NETWORKS[network]}: {', '.join(words)}")
    return ";  ".join(parts)
