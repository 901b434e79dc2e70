"""The drawings of a transfer report. No pyplot: nothing here needs a screen or leaves state behind."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from statistics import stdev

from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator

from mup_lightning.studies.transfer.report import title
from mup_lightning.studies.transfer.transfer import Finding, families

Color = tuple[float, float, float, float]

DPI = 130
LOST, OPTIMUM = "#d55e00", "#0072b2"
"""Told apart by the colour-blind, and from all colours of the sizes."""

_HEADROOM = 0.6
"""Nats above the worst of the best losses that are shown at most: far above, all that matters is that it is far."""


def draw(findings: list[Finding], folder: Path) -> list[Path]:
    """Draw a picture for each swept value over each axis, panels by parametrization.

    Args:
        findings: of a table.
        folder: for the pictures, which exists.

    Returns:
        Files transfer_AXIS-VALUE[-SETTINGS].png.
    """
    files = []
    for family in families(findings):
        file = folder / f"transfer_{_name(family[0], findings)}.png"
        picture(family).savefig(file, dpi=DPI)
        files.append(file)
    return files


def picture(family: list[Finding]) -> Figure:
    """Losses against the base value above, the best value against the size below; a column a parametrization."""
    figure = Figure(figsize=(1.6 + 3.7 * len(family), 7.2), layout="constrained")
    upper, lower = figure.subplots(2, len(family), squeeze=False, sharey="row", height_ratios=(1.25, 1))
    colors = _colors(family)
    heights = _bottom(family), _top(family)
    for finding, ax in zip(family, upper, strict=True):
        _draw_losses(ax, finding, colors, heights)
    for finding, ax in zip(family, lower, strict=True):
        _draw_optima(ax, finding)
    _share_height(lower, family)
    upper[0].set_ylabel("validation loss, nats per token")
    value = family[0].group.settings.get("value", "base value")
    lower[0].set_ylabel(f"log2 of the best {value}")
    axis = family[0].group.axis
    _legend(upper, colors, axis, lost=any(map(_any_lost, family)))
    figure.suptitle(
        _head(title(family[0]), len(family)),
        fontsize=12 if len(family) > 1 else 11,
    )
    return figure


def _head(what: str, columns: int) -> str:
    """In lines that the figure has room for."""
    said = "where the best value transfers, it lies on the dashed line at every size"
    return "\n".join(line for text in (what, said) for line in textwrap.wrap(text, 22 + 34 * columns))


def _draw_losses(ax: Axes, finding: Finding, colors: dict[str, Color], heights_shown: tuple[float, float]) -> None:
    for curve in finding.group.curves:
        color, means = colors[curve.size], curve.means
        # A lost value leaves a gap.
        heights = [means.get(value, math.nan) for value in curve.losses]
        ax.plot(list(curve.losses), heights, "o-", color=color, linewidth=1.6, markersize=4, label=curve.size)
        several = [value for value, losses in curve.losses.items() if len(losses) > 1]
        spread = [stdev(curve.losses[value].values()) for value in several]
        ax.errorbar(several, [means[v] for v in several], spread, fmt="none", ecolor=color, elinewidth=1.2, capsize=2)
        if (best := finding.of(curve.size)) is not None:
            ax.plot(best.grid, best.loss, "o", color=color, markersize=8.5, markeredgecolor="black", zorder=3)
    for row, curve in enumerate(finding.group.curves):
        for value in filter(curve.lost, curve.losses):  # one above the other, the largest size highest
            place, transform = 1.02 + 0.022 * row, ax.get_xaxis_transform()
            ax.plot(value, place, "x", color=colors[curve.size], markersize=5, transform=transform, clip_on=False)
    ax.set_ylim(*heights_shown)
    ax.set_title(finding.group.label, fontsize=12, pad=10 + 4 * len(finding.group.curves) if _any_lost(finding) else 8)
    ax.set_xlabel(f"log2 of the base value ({finding.group.settings.get('value', 'value')})")
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    _style(ax)


def _legend(axes: Sequence[Axes], colors: dict[str, Color], axis: str, *, lost: bool) -> None:
    """All sizes, whichever panels have them, right of the panels."""
    marks: list[Artist] = [Line2D([], [], color=color, marker="o", markersize=4) for color in colors.values()]
    marks.append(Line2D([], [], color="white", marker="o", markeredgecolor="black", markersize=8))
    marks.append(Line2D([], [], color="0.4", marker="x", linestyle="none", markersize=5))
    names = [*colors, "best tried", "diverged\nor stopped"]
    shown = len(names) if lost else len(names) - 1
    axes[-1].legend(
        marks[:shown], names[:shown], title=axis, loc="upper left", bbox_to_anchor=(1.02, 1.0), frameon=False
    )


def _draw_optima(ax: Axes, finding: Finding) -> None:
    if not finding.optima:
        ax.text(0.5, 0.5, "nothing trained", transform=ax.transAxes, ha="center")
        return
    x = [2**o.position for o in finding.optima]
    y = [o.value for o in finding.optima]
    ax.axhline(y[0], linestyle="--", color="black", linewidth=1.4)
    ax.errorbar(
        x,
        y,
        yerr=[o.reach(finding.noise.freedom) for o in finding.optima],
        fmt="o",
        color=OPTIMUM,
        capsize=3,
        markersize=6,
    )
    for o in finding.optima:
        if o.edge:  # an arrow to where the true one lies
            ax.annotate(
                "", (2**o.position, o.value + 0.6 * o.edge), (2**o.position, o.value),
                arrowprops={"arrowstyle": "->", "color": LOST},
            )  # fmt: skip
    text, verdict = "one size", finding.verdict.partition(":")[0]
    if finding.slope is not None:
        slope = finding.slope
        ends = [finding.optima[0].position, finding.optima[-1].position]
        middle = sum(o.position for o in finding.optima) / len(finding.optima)
        ax.plot(
            [2**e for e in ends], [slope.at + slope.slope * (e - middle) for e in ends], color=OPTIMUM, linewidth=1.4
        )
        interval = f" [{slope.low:+z.2f}, {slope.high:+z.2f}]" if slope.low is not None else ""
        bound = {"at most": "≤ ", "at least": "≥ "}.get(slope.bound, "")
        last = finding.regrets[-1]
        why = "-" if last.why == "untuned" else last.why
        cost = why if last.nats is None else f"{'≥ ' if last.least else ''}{last.nats:.3f} nats"
        text = f"slope {bound}{slope.slope:+z.2f}{interval} a doubling\nregret at {last.size}: {cost}"
    ax.set_title(f"{verdict}\n{text}", fontsize=9.5, loc="left")
    ax.set_xscale("log", base=2)
    sizes = [(2**curve.position, curve.size) for curve in finding.group.curves]
    ax.set_xticks([place for place, _ in sizes], [size for _, size in sizes])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel(finding.group.axis)
    _style(ax)


def _share_height(axes: Sequence[Axes], family: list[Finding]) -> None:
    """The whole grid of values, as in the panels above, so that small moves look small."""
    values = [v for finding in family for curve in finding.group.curves for v in curve.losses]
    low, high = min(values), max(values)
    for ax in axes:
        ax.set_ylim(low - 0.8, high + 0.8)  # room for arrows at the edges
        ax.yaxis.set_major_locator(MaxNLocator(8, integer=True))


def _top(family: list[Finding]) -> float:
    """The highest loss that is shown."""
    best = [o.loss for finding in family for o in finding.optima]
    losses = [loss for finding in family for curve in finding.group.curves for loss in curve.means.values()]
    return min(max(losses) + 0.03, max(best) + _HEADROOM) if best else 1.0


def _bottom(family: list[Finding]) -> float:
    """A little below the lowest bar: the panels share their axis, so that none may choose by itself."""
    low = []
    for curve in (curve for finding in family for curve in finding.group.curves):
        for value, mean in curve.means.items():
            losses = curve.losses[value].values()
            low.append(mean - (stdev(losses) if len(losses) > 1 else 0.0))
    lowest = min(low, default=0.0)
    return lowest - 0.03 * (_top(family) - lowest)


def _colors(family: list[Finding]) -> dict[str, Color]:
    """From light (small) to dark (large), told apart by the colour-blind and in print."""
    sizes = {curve.position: curve.size for finding in family for curve in finding.group.curves}
    names = [size for _, size in sorted(sizes.items())]
    shades = [colormaps["viridis"](0.9 * (1 - i / max(1, len(names) - 1))) for i in range(len(names))]
    return dict(zip(names, shades, strict=True))


def _any_lost(finding: Finding) -> bool:
    return any(curve.lost(value) for curve in finding.group.curves for value in curve.losses)


def _name(finding: Finding, findings: list[Finding]) -> str:
    """The axis, the value, and what else tells this picture from the others of the table."""
    settings = finding.group.settings
    parts = [finding.group.axis, settings.get("value", "").rpartition(".")[2]]
    for key in settings:
        shown = {other.group.settings.get(key, "") for other in findings}
        if key not in ("parametrization", "branch_depth", "value") and len(shown) > 1:
            parts.append(settings[key] if key == "optimizer" else f"{key.rpartition('.')[2]}-{settings[key]}")
    return re.sub(r"[^A-Za-z0-9.=+-]+", "-", "_".join(filter(None, parts)).replace("_", " ")).strip("-").lower()


def _style(ax: Axes) -> None:
    ax.tick_params(labelleft=True)
    ax.grid(True, color="0.9", linewidth=0.8)
    ax.spines[["top", "right"]].set_visible(False)
