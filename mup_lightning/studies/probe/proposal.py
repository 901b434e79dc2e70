"""A recipe for an optimizer that nobody has declared: measured exponents, snapped to quarters, as a family.

Learning rate and weight decay then follow from the same `recipe.exponents` as for every declared family.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from mup_lightning.spectral.condition import solve
from mup_lightning.spectral.families import FAMILIES, Family
from mup_lightning.spectral.roles import Role
from mup_lightning.spectral.scale import Scale
from mup_lightning.spectral.tables import as_plain
from mup_lightning.studies.probe.verdict import AXES, Fits

KINDS = {
    "sgd": "plain gradient",
    "adamw": "sign",
    "muon": "orthogonal",
    "muon_kimi": "scaled orthogonal",
    "sso": "unit",
}
"""Families by what the direction is, named by the first optimizer of each."""

_FINITE_SIZE = 0.05
"""How far an exponent may be from a quarter without a warning, however sure it is: small networks bend lines thus."""


def propose(name: str, fits: Fits, branch_depth: int) -> dict[str, Any]:
    """The recipe, what it rests on, and the declared families that it agrees with.

    It rests on the later steps, because that is where a recipe is used; on the first where there are none.

    Args:
        name: what to call the optimizer.
        fits: of all roles that the optimizer updates. Vectors that are missing get AdamW's rows.
        branch_depth: k.

    Returns:
        Plain values: "recipe" as `mup-lightning recipe --json` prints it; "direction": role -> axis -> "snapped",
        "measured", "low", "high"; "window"; "like": the kind of families that agree, or None; "nearest": the kind that
        differs least, with "off" by how much at most; "adamw_for": roles left to AdamW; "warnings".
    """
    window = "later" if fits.get("later") else "first"
    measured = fits[window]
    snapped = {role: {axis: snap(by_axis[axis].exponent) for axis in AXES} for role, by_axis in measured.items()}
    scales = {role: Scale(width=axes["width"], depth=axes["depth"]) for role, axes in snapped.items()}
    family = Family(
        name, lambda w: scales[w.role] if w.role in scales else FAMILIES["adamw"].direction(w), epsilon=None
    )
    warnings = []
    for role, by_axis in measured.items():
        for axis in AXES:
            fit, value = by_axis[axis], snapped[role][axis]
            if not fit.low <= value <= fit.high and abs(fit.exponent - value) > _FINITE_SIZE:
                warnings.append(
                    f"{role} in {axis}: the interval {fit.low:+.2f} to {fit.high:+.2f} does not contain {value}, the "
                    f"nearest quarter"
                )
    off = {kind: _distance(FAMILIES[first], measured, branch_depth) for first, kind in KINDS.items()}
    nearest = min(off, key=lambda kind: off[kind])
    same = all(
        _declared(FAMILIES[first], role, branch_depth) == scale
        for first, kind in KINDS.items()
        if kind == nearest
        for role, scale in scales.items()
    )
    return {
        "recipe": as_plain(family, branch_depth),
        "direction": {
            str(role): {
                axis: {
                    "snapped": str(snapped[role][axis]),
                    "measured": by_axis[axis].exponent,
                    "low": by_axis[axis].low,
                    "high": by_axis[axis].high,
                }
                for axis in AXES
            }
            for role, by_axis in measured.items()
        },
        "window": window,
        "like": nearest if same else None,
        "nearest": {"kind": nearest, "off": off[nearest]},
        "adamw_for": [str(role) for role in Role if role not in measured],
        "warnings": warnings,
    }


def snap(value: float) -> Fraction:
    """The nearest quarter."""
    return Fraction(round(4 * value), 4)


def _distance(family: Family, measured: dict[Role, dict[str, Any]], branch_depth: int) -> float:
    """The largest difference of a measured exponent from a family's."""
    return max(
        abs(by_axis[axis].exponent - float(getattr(_declared(family, role, branch_depth), axis)))
        for role, by_axis in measured.items()
        for axis in AXES
    )


def _declared(family: Family, role: Role, branch_depth: int) -> Scale:
    """What a family says of a role; whole-matrix ones leave vectors to AdamW."""
    mine = FAMILIES["adamw"] if family.whole_matrix and role.is_vector else family
    return mine.direction(solve(role, branch_depth))
