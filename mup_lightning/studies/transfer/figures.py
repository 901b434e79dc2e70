"""Figures of the transfer report. No pyplot: nothing here needs a screen or leaves state behind."""

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator

from mup_lightning.studies import style
from mup_lightning.studies.transfer.transfer import Transfer, families
from mup_lightning.studies.transfer.verdict import bounded_slope

Color = tuple[float, float, float, float]

_OPTIMUM, _BEYOND = style.SERIES[2], style.SERIES[0]

_HEADROOM = 0.6
"""Nats shown above the worst of the best losses, at most: further up, the exact height does not matter."""


def draw(found: Sequence[Transfer], folder: Path) -> list[Path]:
    """Draw a figure for each swept value over each axis, a column per parametrization.

    Args:
        found: the groups of a table.
        folder: folder for the figures.

    Returns:
        Files transfer_AXIS-VALUE[-SETTINGS].png.
    """
    return [
        style.save(_figure(family), folder / f"transfer_{_name(family[0], found)}.png") for family in families(found)
    ]


def _figure(family: Sequence[Transfer]) -> Figure:
    """Loss against base value above, the best value against size below."""
    figure = Figure(figsize=(1.6 + 3.7 * len(family), 7.2), layout="constrained")
    upper, lower = figure.subplots(2, len(family), squeeze=False, sharey="row", height_ratios=(1.25, 1))
    positions = {curve.size: curve.position for one in family for curve in one.curves}
    sizes = sorted(positions, key=lambda size: positions[size])
    colors = {size: style.STEPS(i / max(1, len(sizes) - 1)) for i, size in enumerate(sizes)}
    for one, losses, optima in zip(family, upper, lower, strict=True):
        _draw_losses(losses, one, colors)
        _draw_optima(optima, one)
    _limit_losses(upper[0], family)
    values = np.concatenate([curve.values for one in family for curve in one.curves])
    lower[0].set_ylim(values.min() - 0.8, values.max() + 0.8)  # the whole grid, so that small moves look small
    upper[0].set_ylabel("validation loss, nats per token")
    lower[0].set_ylabel(f"log2 of the best {family[0].settings.get('value', 'base value')}")
    _legend(upper[-1], colors, family)
    lines = [family[0].title, "where the best value transfers, it lies on the dashed line at every size"]
    wrapped = [part for line in lines for part in textwrap.wrap(line, 22 + 34 * len(family))]
    figure.suptitle("\n".join(wrapped), fontsize=12 if len(family) > 1 else 11)
    return figure


def _draw_losses(ax: Axes, found: Transfer, colors: dict[str, Color]) -> None:
    """Mean losses with the spread between seeds; crosses above the panel mark lost values."""
    for row, curve in enumerate(found.curves):
        color = colors[curve.size]
        means = np.where(np.isfinite(curve.means), curve.means, np.nan)  # a lost value leaves a gap
        ax.plot(curve.values, means, "o-", color=color, linewidth=1.6, markersize=4)
        ax.errorbar(curve.values, means, curve.spread, fmt="none", ecolor=color, elinewidth=1.2, capsize=2)
        if best := found.at(curve.size):
            ax.plot(best.best_value, best.loss, "o", color=color, markersize=8.5, markeredgecolor="black", zorder=3)
        for value in curve.lost:  # the largest size highest; an empty line would collapse the layout
            transform = ax.get_xaxis_transform()
            ax.plot(value, 1.02 + 0.022 * row, "x", color=color, markersize=5, transform=transform, clip_on=False)
    crosses = 4 * len(found.curves) + 2 if any(curve.lost for curve in found.curves) else 0
    ax.set_title(found.label, fontsize=12, pad=8 + crosses)
    ax.set_xlabel(f"log2 of the base value ({found.settings.get('value', 'value')})")
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    ax.tick_params(labelleft=True)
    style.decorate(ax)


def _limit_losses(ax: Axes, family: Sequence[Transfer]) -> None:
    """Show every best loss and bar, but not the heights of divergence."""
    curves = [curve for one in family for curve in one.curves if curve.trained]
    if not curves:
        return
    lowest = min(np.nanmin(curve.means - np.nan_to_num(curve.spread)) for curve in curves)
    best = max(best.loss for one in family for best in one.optima)
    top = min(max(max(curve.trained.values()) for curve in curves) + 0.03, best + _HEADROOM)
    ax.set_ylim(lowest - 0.03 * (top - lowest), top)


def _legend(ax: Axes, colors: dict[str, Color], family: Sequence[Transfer]) -> None:
    """List the sizes of all panels, to the right of them."""
    marks: list[Artist] = [Line2D([], [], color=color, marker="o", markersize=4) for color in colors.values()]
    marks.append(Line2D([], [], color="white", marker="o", markeredgecolor="black", markersize=8))
    names = [*colors, "best tried"]
    if any(curve.lost for one in family for curve in one.curves):
        marks.append(Line2D([], [], color="0.4", marker="x", linestyle="none", markersize=5))
        names.append("diverged\nor stopped")
    ax.legend(marks, names, title=family[0].axis, loc="upper left", bbox_to_anchor=(1.02, 1.0), frameon=False)


def _draw_optima(ax: Axes, found: Transfer) -> None:
    """Optima with their 95 % intervals and the fitted line; arrows point beyond the edge of the grid."""
    if not found.optima:
        ax.text(0.5, 0.5, "nothing trained", transform=ax.transAxes, ha="center")
        return
    x = np.array([best.position for best in found.optima])
    y = [best.value for best in found.optima]
    ax.axhline(y[0], linestyle="--", color="black", linewidth=1.4)
    half_widths = [best.ci_half_width for best in found.optima]
    ax.errorbar(2**x, y, yerr=half_widths, fmt="o", color=_OPTIMUM, capsize=3, markersize=6)
    for best in found.optima:
        if best.edge:
            place = 2**best.position, best.value
            arrow = {"arrowstyle": "->", "color": _BEYOND}
            ax.annotate("", (place[0], place[1] + 0.6 * best.edge), place, arrowprops=arrow)
    text, last = "one size", found.regrets[-1]
    if found.slope is not None:
        line = found.slope.mean + found.slope.slope * (x - x.mean())
        ax.plot(2**x, line, color=_OPTIMUM, linewidth=1.4)
        why = "-" if last.why == "untuned" else last.why
        cost = why if last.nats is None else f"{'≥ ' if last.at_least else ''}{last.nats:.3f} nats"
        text = f"slope {bounded_slope(found.slope)} a doubling\nregret at {last.size}: {cost}"
    ax.set_title(f"{found.verdict.partition(':')[0]}\n{text}", fontsize=9.5, loc="left")
    ax.set_xscale("log", base=2)
    ax.set_xticks([2**curve.position for curve in found.curves], [curve.size for curve in found.curves])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel(found.axis)
    ax.yaxis.set_major_locator(MaxNLocator(8, integer=True))
    ax.tick_params(labelleft=True)
    style.decorate(ax)


def _name(one: Transfer, found: Sequence[Transfer]) -> str:
    """The axis, the value, and what else distinguishes this figure from the others of the table."""
    parts = [one.axis, one.settings.get("value", "").rpartition(".")[2]]
    for key, text in one.settings.items():
        varies = len({other.settings.get(key, "") for other in found}) > 1
        if varies and key not in ("parametrization", "branch_depth", "value"):
            parts.append(text if key == "optimizer" else f"{key.rpartition('.')[2]}-{text}")
    return re.sub(r"[^A-Za-z0-9.=+-]+", "-", "_".join(filter(None, parts)).replace("_", " ")).strip("-").lower()
