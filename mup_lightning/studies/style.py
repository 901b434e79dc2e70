"""The look that all figures share: log axes with plain numbers, a faint grid, colours safe for the colour-blind."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from mup_lightning.files import write_atomic
from mup_lightning.studies.scaling import Verdict

DPI = 130

SERIES = ("#d55e00", "#009e73", "#0072b2", "#cc79a7", "#e69f00", "#56b4e9")
"""Colours of unordered series (Okabe and Ito), distinguishable for the colour-blind."""

VERDICTS = {Verdict.PASS: "#1b7837", Verdict.UNCLEAR: "#8a6d00", Verdict.FAIL: "#b2182b"}

STEPS = LinearSegmentedColormap.from_list("steps", [colormaps["viridis"](0.9 * (1 - i / 63)) for i in range(64)])
"""Colours of ordered series, such as training steps: from light (the first) to dark (the last)."""


def save(figure: Figure, file: Path) -> Path:
    """Write a figure in the format that its file's ending names, and return the file."""
    content = io.BytesIO()
    figure.savefig(content, format=file.suffix.lstrip(".") or None, dpi=DPI)
    write_atomic(file, content.getvalue())
    return file


def panels(rows: int, columns: int, size: tuple[float, float], **options: Any) -> tuple[Figure, Any]:
    """A figure of this size, inches, and its axes, (rows, columns); options are those of `Figure.subplots`."""
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def legend(figure: Figure, names: Sequence[str] = (), **options: Any) -> None:
    """Add one legend of all labels in a figure, each once; `names` are their order, if it is another than drawn."""
    marks = {label: mark for ax in figure.axes for mark, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    shown = [name for name in names or marks if name in marks]
    figure.legend([marks[name] for name in shown], shown, frameon=False, **options)


def decorate(ax: Axes) -> None:
    """Give a panel its grid, and take its upper and right edge away."""
    ax.grid(True, color="0.92", linewidth=0.8)
    ax.spines[["top", "right"]].set_visible(False)


def plain_numbers(axis: Axis) -> None:
    """Label major ticks 0.05 or 200 rather than 5 × 10⁻² or 2 × 10², and minor ticks not at all."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def log_sizes(ax: Axes, sizes: Sequence[float]) -> None:
    """Make the horizontal axis logarithmic, with a tick at every measured size."""
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(FixedLocator(list(sizes)))
    ax.xaxis.set_minor_locator(NullLocator())
    plain_numbers(ax.xaxis)


def log_values(ax: Axes, subdivisions: Sequence[float] = (1, 2, 5)) -> None:
    """Make the vertical axis logarithmic, with ticks at these multiples of every power of ten."""
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=subdivisions))
    plain_numbers(ax.yaxis)


def step_key(figure: Figure, axes: Sequence[Axes], steps: int) -> None:
    """Add the colour bar that explains `STEPS`, of training steps 0 to `steps`."""
    key = ScalarMappable(Normalize(0, max(1, steps)), STEPS)
    figure.colorbar(key, ax=axes, label="training step", shrink=0.5, ticks=MaxNLocator(5, integer=True))


def points(
    ax: Axes,
    sizes: Sequence[float],
    values_SP: Sequence[Sequence[float]],
    color: Any,
    *,
    exponent: float | None = None,
    seeds: bool = True,
    shift: float = 1.0,
    **options: Any,
) -> None:
    """Draw P values above 0 of S seeds against size: single seeds pale, and their geometric means, joined by lines.

    Given an exponent, its line through the middle of the means takes the place of the joints. `shift` is a factor to
    the side, for several kinds in one panel; options are of the means' markers and line.
    """
    x_P, y_SP = np.array(sizes, dtype=float), np.array(values_SP)
    means_P = np.exp(np.log(y_SP).mean(0))
    if seeds:
        ax.plot(shift * x_P, y_SP.T, ".", color=color, alpha=0.3, markersize=5)
    if exponent is not None:
        options["linestyle"] = "none"
        middle = np.exp(np.log(means_P / x_P**exponent).mean())
        ax.plot(x_P, middle * x_P**exponent, "-", color=color, linewidth=1.4)
    ax.plot(shift * x_P, means_P, color=color, **{"marker": "o", "linewidth": 1.4, "markersize": 4, **options})


def write(ax: Axes, lines: Sequence[tuple[str, Any]], *, below: bool = False) -> None:
    """Write lines of (text, colour) into the upper, or lower, left corner of a panel."""
    corner, up, va = (0, 1, "bottom") if below else (1, -1, "top")
    for number, (words, color) in enumerate(reversed(lines) if below else lines):
        offset = (5, up * (4 + 13 * number))
        ax.annotate(words, (0, corner), offset, "axes fraction", "offset points", color=color, fontsize=9.5, va=va)


def share_scale(axes: Sequence[Axes], sizes: Sequence[float], lines: int = 1) -> None:
    """Give panels one logarithmic scale, at least a factor of 4, with room for so many lines of text at the top."""
    for ax in axes:
        ax.set_yscale("log")
    low, high = min(ax.get_ylim()[0] for ax in axes), max(ax.get_ylim()[1] for ax in axes)
    middle, half = np.sqrt(low * high), max(2.0, np.sqrt(high / low))
    for ax in axes:
        log_sizes(ax, sizes)
        log_values(ax, (1, 2, 5) if half < 20 else (1,))
        ax.set_ylim(middle / half, middle * half * half ** (0.2 + 0.2 * lines))
        decorate(ax)
