"""Tables and numbers as people read them: the same in the terminal, in Markdown and in TensorBoard."""

import math
from collections.abc import Sequence


def text(lines: Sequence[Sequence[str]], gap: str = "  ") -> str:
    """Rows of cells as plain text, each column as wide as its widest cell; the first row is the heading."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        gap.join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Rows of cells as a Markdown table; the first row is the heading."""
    head, *rows = lines
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *rows))


def power_of_two(value: float) -> str:
    """2^-7 where the value is a whole power of two, else its shortest decimal form."""
    if value > 0 and (exponent := math.log2(value)).is_integer():
        return f"2^{int(exponent)}"
    return f"{value:g}"


def signed(value: float, decimals: int = 2) -> str:
    """A number with its sign and fixed decimals; never -0.00."""
    return f"{round(value, decimals) + 0.0:+.{decimals}f}"


def plus_minus(value: float, half_width: float) -> str:
    """An estimate and half the width of its 95 % interval, such as +0.48 ± 0.03."""
    return f"{signed(value)} ± {half_width:.2f}"


def interval(value: float, low: float, high: float) -> str:
    """An estimate and its 95 % interval, such as +0.48 [+0.45, +0.51]."""
    return f"{signed(value)} [{signed(low)}, {signed(high)}]"
