"""The forecast as a figure: loss against FLOPs. No pyplot: nothing here needs a screen or leaves state behind."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from mup_lightning.config.forecast import Forecast
from mup_lightning.studies import style
from mup_lightning.studies.forecast.law import Cell, Law


def draw(result: Forecast, cells: Sequence[Cell], law: Law, file: Path) -> Path:
    """Draw the cells, the law through them and on to the target with its band, and the largest as predicted."""
    figure = Figure(figsize=(7.6, 4.8), layout="constrained")
    ax = figure.subplots()
    sizes = sorted({cell.size for cell in cells})
    for number, size in enumerate(sizes):
        own = sorted((cell for cell in cells if cell.size == size), key=lambda cell: cell.tokens)
        color: Any = style.STEPS(number / max(1, len(sizes) - 1))
        shape = f"{own[0].width} x {own[0].depth}"
        flops, losses = [cell.flops for cell in own], [cell.loss for cell in own]
        ax.errorbar(flops, losses, [cell.spread for cell in own], fmt="o", color=color, markersize=5, label=shape)
        if len(own) > 1:
            tokens = np.geomspace(own[0].tokens, own[-1].tokens, 40)
            fitted = [law.predict(size, count)[0] for count in tokens]
            ax.plot(6 * own[0].parameters * tokens, fitted, color=color, linewidth=1.2)
    target = (result.target_size, result.tokens, 6.0 * result.parameters * result.tokens)
    whole = law.direction is not None  # one line: then the law is drawn along all of it
    places = [(cell.size, cell.tokens, cell.flops) for cell in (cells if whole else cells[-1:])]
    logs = np.log(sorted([*places, target], key=lambda place: place[2]))
    share = np.linspace(0, len(logs) - 1, 25 * (len(logs) - 1) + 1)
    size_X, tokens_X, flops_X = (np.exp(np.interp(share, range(len(logs)), column)) for column in logs.T)
    both = zip(size_X, tokens_X, strict=True)
    loss_X, low_X, high_X = np.array([law.predict(*place, widen=result.widened) for place in both]).T
    color = style.SERIES[2]
    ax.plot(flops_X, loss_X, "-" if whole else "--", color=color, linewidth=1.2, label="law, 95 % of single runs")
    ax.fill_between(flops_X, low_X, high_X, color=color, alpha=0.13, linewidth=0)
    if held := result.held_out:
        middle = held["predicted"]
        ends = [[middle - held["low"]], [held["high"] - middle]] if "low" in held else None
        label = f"the largest from the others: {held['miss_percent']:+.1f} %"
        ax.errorbar(held["flops"], middle, ends, fmt="D", color="black", mfc="none", capsize=3, label=label)
    ends = [[result.loss - result.low], [result.high - result.loss]]
    label = f"target: {result.loss:.3f}, 95 % from {result.low:.3f} to {result.high:.3f}"
    ax.errorbar(target[2], result.loss, ends, fmt="*", color=style.SERIES[0], markersize=13, capsize=4, label=label)
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(numticks=12))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel("training FLOPs (6 x parameters x tokens)")
    ax.set_ylabel("validation loss, nats per token")
    ax.legend(frameon=False, fontsize=8.5, title="width x depth")
    style.decorate(ax)
    return style.save(figure, file)
