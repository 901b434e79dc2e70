"""The look that all figures share: log axes with plain numbers, a faint grid, colours safe for the colour-blind."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from mup_lightning.studies.fit import Verdict

DPI = 130

SERIES = ("#d55e00", "#009e73", "#0072b2", "#cc79a7", "#e69f00", "#56b4e9")
"""Colours of unordered series (Okabe and Ito), distinguishable for the colour-blind."""

VERDICTS = {Verdict.PASS: "#1b7837", Verdict.UNCLEAR: "#8a6d00", Verdict.FAIL: "#b2182b"}

STEPS = LinearSegmentedColormap.from_list("steps", [colormaps["viridis"](0.9 * (1 - i / 63)) for i in range(64)])
"""Colours of ordered series, such as training steps: from light (the first) to dark (the last)."""


def save(figure: Figure, file: Path) -> Path:
    """Write a figure in the format that its file's ending names, and return the file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=DPI)
    return file


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
