"""Results as text for a terminal."""

from __future__ import annotations

from typing import Any

from tests.benchmarks.result import CaseResult, Quantity, Spread

_NAME, _FIGURE = 40, 11


def table(result: CaseResult, *, aims: bool = True) -> str:
    """All figures of a case, a line each: median, lowest and highest of the rounds.

    Args:
        result: of the case.
        aims: say what the figures shall be; pointless at sizes that the aims are not meant for.
    """
    settings = ", ".join(f"{key} {value}" for key, value in result.settings.items())
    lines = [f"{result.case}: {result.description}", f"  {settings}"]
    for quantity in result.quantities:
        lines += ["", *_quantity(quantity, aims)]
    return "\n".join(lines)


def heading(machine: dict[str, Any]) -> str:
    """The machine in one line."""
    versions = machine["versions"]
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_mb'] / 1000:,.0f} GB; "
        f"torch {versions['torch']}, mup-lightning {versions['mup-lightning']} (git {versions['git'] or 'unknown'})"
    )


def _quantity(quantity: Quantity, aims: bool) -> list[str]:
    columns = "".join(f"{column:>{_FIGURE}}" for column in ("median", "lowest", "highest"))
    lines = [f"  {f'{quantity.name} ({quantity.unit})':<{_NAME}}{columns}"]
    for contender, spread in quantity.measured.items():
        lines.append(_line(contender, spread, quantity.aims.get(contender, "") if aims else ""))
    for ratio in quantity.ratios:
        lines.append(_line(ratio.name, ratio.spread, ratio.aim if aims else ""))
    return lines


def _line(name: str, spread: Spread, aim: str) -> str:
    figures = "".join(f"{_figure(value):>{_FIGURE}}" for value in (spread.median, spread.lowest, spread.highest))
    return f"    {name:<{_NAME - 2}}{figures}{f'   aim: {aim}' if aim else ''}"


def _figure(value: float) -> str:
    """Four digits or so."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 100 else f"{value:.3f}"
