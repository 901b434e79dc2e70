"""Figures of the transfer report. No pyplot: nothing here needs a screen or leaves state behind."""

import re
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from mup_lightning.errors import UserError
from mup_lightning.spectral.horizon import AXES
from mup_lightning.studies import style
from mup_lightning.studies.scaling import NAMES
from mup_lightning.studies.transfer.law import LawFit, Place
from mup_lightning.studies.transfer.verdict import Group, bounded_slope, families

_HEADROOM = 0.6  # nats shown above the worst of the best losses, at most: further up, the exact height does not matter


def draw(found: Sequence[Group], folder: Path) -> list[Path]:
    """Draw transfer_AXIS-VALUE[-SETTINGS].png for each swept value over each axis, a column per parametrization."""
    return [
        style.save(_figure(family), folder / f"transfer_{_name(family[0], found)}.png") for family in families(found)
    ]


def _figure(family: Sequence[Group]) -> Figure:
    """Loss against base value above, the best value against size below."""
    size, shared = (1.6 + 3.7 * len(family), 7.2), {"sharey": "row", "height_ratios": (1.25, 1)}
    figure, (upper, lower) = style.panels(2, len(family), size, **shared)
    curves = [curve for one in family for curve in one.curves]
    sizes = [size for _, size in sorted({(curve.position, curve.size) for curve in curves})]
    colors = {size: style.STEPS(i / max(1, len(sizes) - 1)) for i, size in enumerate(sizes)}
    for one, losses, optima in zip(family, upper, lower, strict=True):
        _draw_losses(losses, one, colors)
        _draw_optima(optima, one)
    if trained := [curve for curve in curves if curve.trained]:  # every best loss and bar, but no heights of divergence
        lowest = min(np.nanmin(curve.means - np.nan_to_num(curve.spread)) for curve in trained)
        best = max(best.loss for one in family for best in one.optima)
        top = min(max(max(curve.trained.values()) for curve in trained) + 0.03, best + _HEADROOM)
        upper[0].set_ylim(lowest - 0.03 * (top - lowest), top)
    values = np.concatenate([curve.values for curve in curves])
    lower[0].set_ylim(values.min() - 0.8, values.max() + 0.8)  # the whole grid, so that small moves look small
    upper[0].set_ylabel("validation loss, nats per token")
    lower[0].set_ylabel(f"log2 of the best {family[0].settings.get('value', 'base value')}")
    place = "outside right upper" if len(family) > 1 else "outside right center"  # or the title would reach it
    style.legend(figure, [*sizes, "best tried", "diverged"], title=family[0].axis, loc=place)
    lines = [family[0].title, "where the best value transfers, it lies on the dashed line at every size"]
    wrapped = [part for line in lines for part in textwrap.wrap(line, 22 + 34 * len(family))]
    figure.suptitle("\n".join(wrapped), fontsize=12 if len(family) > 1 else 11)
    return figure


def _draw_losses(ax: Axes, found: Group, colors: dict[str, tuple[float, float, float, float]]) -> None:
    """Mean losses with the spread between seeds; crosses above the panel mark lost values."""
    for row, curve in enumerate(found.curves):
        color = colors[curve.size]
        means = np.where(np.isfinite(curve.means), curve.means, np.nan)  # a lost value leaves a gap
        ax.plot(curve.values, means, "o-", color=color, linewidth=1.6, markersize=4, label=curve.size)
        ax.errorbar(curve.values, means, curve.spread, fmt="none", ecolor=color, elinewidth=1.2, capsize=2)
        if best := found.at(curve.size):
            ring: dict[str, Any] = {"markersize": 8.5, "markeredgecolor": "black", "zorder": 3, "label": "best tried"}
            ax.plot(best.best_value, best.loss, "o", color=color, **ring)
        for value in curve.lost:  # the largest size highest; an empty line would collapse the layout
            place: dict[str, Any] = {"transform": ax.get_xaxis_transform(), "clip_on": False}
            ax.plot(value, 1.02 + 0.022 * row, "x", color=color, markersize=5, label="diverged", **place)
    crosses = 4 * len(found.curves) + 2 if any(curve.lost for curve in found.curves) else 0
    ax.set_title(found.label, fontsize=12, pad=8 + crosses)
    ax.set_xlabel(f"log2 of the base value ({found.settings.get('value', 'value')})")
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    ax.tick_params(labelleft=True)
    style.decorate(ax)


def _draw_optima(ax: Axes, found: Group) -> None:
    """Optima with their 95 % intervals and the fitted line; arrows point beyond the edge of the grid."""
    blue, orange = style.SERIES[2], style.SERIES[0]
    for best in found.optima:
        x = 2**best.position
        ax.errorbar(x, best.value, yerr=best.ci_half_width, fmt="o", color=blue, capsize=3, markersize=6)
        if best.edge:
            arrow = {"arrowstyle": "->", "color": orange}
            ax.annotate("", (x, best.value + 0.6 * best.edge), (x, best.value), arrowprops=arrow)
    title = "one size"
    if found.optima:
        ax.axhline(found.optima[0].value, linestyle="--", color="black", linewidth=1.4)
    if found.slope is not None:
        log2 = np.array([best.position for best in found.optima])
        ax.plot(2**log2, found.slope.mean + found.slope.slope * (log2 - log2.mean()), color=blue, linewidth=1.4)
        title = f"slope {bounded_slope(found.slope)} a doubling\nregret at {found.curves[-1].size}: {found.regrets[-1]}"
    ax.set_title(f"{found.verdict.partition(':')[0]}\n{title}", fontsize=9.5, loc="left")
    places = [2**curve.position for curve in found.curves]
    style.log_sizes(ax, places)
    ax.set_xticks(places, [curve.size for curve in found.curves])
    ax.set_xlabel(found.axis)
    ax.yaxis.set_major_locator(MaxNLocator(8, integer=True))
    ax.tick_params(labelleft=True)
    style.decorate(ax)


def draw_law(found: LawFit, target: Place, file: Path) -> Path:
    """Draw the optima with the law and its band, each axis as far as the target, moved to the middle of the others."""
    figure, (panels,) = style.panels(1, len(found.axes), (1.2 + 3.5 * len(found.axes), 4.4), sharey=True)
    for ax, axis in zip(panels, found.axes, strict=True):
        number, own = AXES.index(axis), found.exponent(axis)

        def at(side: float, number: int = number) -> Place:
            width, depth, tokens, batch = np.where(np.arange(len(AXES)) == number, side, 2**found.middle)
            return width, depth, tokens, batch

        for place, best in found.cells.items():
            side = place[number]
            move = found.at(at(side), line=True)[0] - found.at(place, line=True)[0]
            look: dict[str, Any] = {"label": "optimum"}
            if place in found.joint:
                look = {"markerfacecolor": "white", "label": "optimum, off the centre on several axes"}
            error = {"yerr": 1.96 * best.se, "fmt": "o", "capsize": 3, "color": style.SERIES[2]}
            ax.errorbar(side, best.value + move, **error, **look)
        low, high = found.range(axis)
        for first, last, line, color, label in (
            (low, high, "-", style.SERIES[2], "law, with 95 % for an optimum"),
            (high, max(high, target[number]), "--", style.SERIES[0], "beyond the runs"),
            (min(low, target[number]), low, "--", style.SERIES[0], "beyond the runs"),
        ):
            if first < last:
                sides = np.geomspace(first, last, 30)
                law, half_width = np.array([found.at(at(side)) for side in sides]).T
                ax.plot(sides, law, line, color=color, linewidth=1.5)
                ax.fill_between(sides, law - half_width, law + half_width, alpha=0.15, lw=0, color=color, label=label)
        interval = f"{own.estimate:+.2f} [{own.low:+.2f}, {own.high:+.2f}]" if own else ""
        ax.set_title(f"exponent {interval}", fontsize=10)
        ax.set_xlabel({"tokens": "tokens of the run", "batch": "tokens of a step"}.get(axis, axis))
        ax.set_xscale("log")
        ax.xaxis.set_minor_formatter(NullFormatter())
        if axis in ("width", "depth"):
            style.log_sizes(ax, sorted({place[number] for place in found.cells} | {target[number]}))
        style.decorate(ax)
    panels[0].set_ylabel("log2 of the best recipe.lr")
    style.legend(figure, loc="outside lower center", ncols=4, fontsize=9)
    return style.save(figure, file)


def draw_best(found: Sequence[dict[str, Any]], file: Path) -> Path:
    """Draw the best loss of each group of `best_values`: a panel per shape, a row per variant, the best at the top.

    Raises UserError where every run has diverged.
    """
    trained = [(one, one["losses"][one["best"]]) for one in found if one["best"] is not None]
    if not trained:
        raise UserError("every run has diverged, so that --out has nothing to draw")
    shapes = sorted({_shape(one) for one, _ in trained})
    columns = sorted({column for one in found for column in one["group"]} - {"width", "depth", "value"})
    usual = {column: Counter(one["group"].get(column, "") for one in found).most_common(1)[0][0] for column in columns}
    mean = {shape: np.mean([loss for one, loss in trained if _shape(one) == shape]) for shape in shapes}
    ahead: dict[str, list[float]] = {}
    for one, loss in trained:
        ahead.setdefault(_variant(one, usual), []).append(loss - mean[_shape(one)])
    rows = sorted(ahead, key=lambda name: -float(np.mean(ahead[name])))  # the last one is drawn at the top
    size = 4.0 + 2.4 * len(shapes), 1.2 + 0.24 * len(rows)
    figure, (panels,) = style.panels(1, len(shapes), size, sharey=True)
    for ax, shape in zip(panels, shapes, strict=True):
        for one, loss in (pair for pair in trained if _shape(pair[0]) == shape):
            row = rows.index(_variant(one, usual))
            look = {"color": style.SERIES[2 if one["group"]["parametrization"] == "mup" else 0], "capsize": 2}
            ax.errorbar(loss, row, xerr=one["between_seeds"], fmt="o", markersize=5, **look)
            ax.annotate(f"{one['best']:g}", (loss, row), (0, 3), textcoords="offset points", fontsize=6.5, ha="center")
        ax.set_title("width {1:g}, depth {0:g}".format(*shape), fontsize=10)
        ax.set_yticks(range(len(rows)), rows, fontsize=8)
        ax.margins(x=0.12)
        style.decorate(ax)
    figure.supxlabel("best validation loss, nats per token; bars: standard deviation between seeds", fontsize=9)
    value = found[0]["group"]["value"]
    figure.suptitle(f"each at the best {value} tried: 2 to the power that is written above its dot", fontsize=10)
    return style.save(figure, file)


def _shape(one: dict[str, Any]) -> tuple[float, float]:
    return float(one["group"]["depth"]), float(one["group"]["width"])


def _variant(one: dict[str, Any], usual: dict[str, str]) -> str:
    """The parametrization, and the settings in which a group differs from most others."""
    own, apart = one["group"], ("parametrization", "branch_depth")
    parts = [NAMES.get(own["parametrization"], own["parametrization"])]
    parts += [f"k = {own['branch_depth']}"] if own.get("branch_depth") not in ("", None, usual["branch_depth"]) else []
    for column, text in own.items():
        if column in usual and column not in apart and text != usual[column]:
            number = f"{float(text):.4g}" if text.replace(".", "").isdigit() else text.lower()
            short = column.removeprefix("recipe.").removeprefix("base.")
            parts.append(number if column == "optimizer" else f"{short} {number}")
    return ", ".join(parts)


def _name(one: Group, found: Sequence[Group]) -> str:
    """The axis, the value, and what else distinguishes this figure from the others of the table."""
    parts = [one.axis, one.settings.get("value", "").rpartition(".")[2]]
    for key, text in one.settings.items():
        varies = len({other.settings.get(key, "") for other in found}) > 1
        if varies and key not in ("parametrization", "branch_depth", "value"):
            parts.append(text if key == "optimizer" else f"{key.rpartition('.')[2]}-{text}")
    return re.sub(r"[^A-Za-z0-9.=+-]+", "-", "_".join(filter(None, parts)).replace("_", " ")).strip("-").lower()
