"""Is what was measured what is declared? Cell by cell, and in one sentence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mup_lightning.spectral.condition import solve
from mup_lightning.spectral.families import Family
from mup_lightning.spectral.roles import Role
from mup_lightning.studies.fit import Fit
from mup_lightning.studies.probe.settings import WINDOWS

CONSISTENT, INCONSISTENT, UNCLEAR, PROPOSED = "consistent", "inconsistent", "unclear", "proposed"

AXES = ("width", "depth")

Fits = dict[str, dict[Role, dict[str, Fit]]]
"""Window -> role -> axis -> fit; a window lacks the roles that it saw no step of."""


@dataclass(frozen=True)
class Cell:
    """One judged exponent."""

    window: str
    role: Role
    axis: str
    fit: Fit
    declared: float
    verdict: str


def judge(found: Fit, declared: float, tolerance: float) -> str:
    """Consistent: the interval lies within declared ± tolerance. Inconsistent: wholly outside. Else unclear."""
    low, high = declared - tolerance, declared + tolerance
    if low <= found.low and found.high <= high:
        return CONSISTENT
    return INCONSISTENT if found.high < low or found.low > high else UNCLEAR


def cells(fits: Fits, families: dict[Role, Family], branch_depth: int, tolerance: float) -> list[Cell]:
    """Judge every exponent that was measured, against what each role's family declares."""
    result = []
    for window, by_role in fits.items():
        for role, by_axis in by_role.items():
            direction = families[role].direction(solve(role, branch_depth))
            for axis in AXES:
                declared = float(getattr(direction, axis))
                verdict = judge(by_axis[axis], declared, tolerance)
                result.append(Cell(window, role, axis, by_axis[axis], declared, verdict))
    return result


def overall(judged: Iterable[Cell]) -> str:
    """Inconsistent where a cell is, else unclear where one is, else consistent."""
    counts = Counter(cell.verdict for cell in judged)
    return next((verdict for verdict in (INCONSISTENT, UNCLEAR) if counts[verdict]), CONSISTENT)


def sentence(name: str, judged: list[Cell], tolerance: float) -> str:
    """The overall verdict in plain words."""
    total = len(judged)
    wrong = [cell for cell in judged if cell.verdict == INCONSISTENT]
    unclear = [cell for cell in judged if cell.verdict == UNCLEAR]
    if wrong:
        return (
            f"{name} is not what its family declares: {len(wrong)} of {total} exponents are off by more than "
            f"{tolerance:g} ({_list(wrong)})."
        )
    if unclear:
        return (
            f"{name}: no exponent contradicts its family, but {len(unclear)} of {total} cannot be told within "
            f"{tolerance:g} ({_list(unclear)}); more --seeds or wider --widths and --depths would tell."
        )
    return f"{name} is what its family declares: all {total} exponents agree within {tolerance:g}."


def as_plain(judged: list[Cell]) -> list[dict[str, Any]]:
    """The cells as plain values."""
    return [
        {
            "window": cell.window,
            "role": str(cell.role),
            "axis": cell.axis,
            "declared": cell.declared,
            "verdict": cell.verdict,
        }
        for cell in judged
    ]


def _list(chosen: list[Cell]) -> str:
    words = [
        f"{cell.role} in {cell.axis}, {WINDOWS[cell.window]}: {cell.fit.exponent:+.2f}, declared {cell.declared:+g}"
        for cell in chosen
    ]
    return "; ".join(words[:4]) + (f"; and {len(words) - 4} more" if len(words) > 4 else "")
