"""The recipe's tables as plain values and as text. No cell is typed in: `recipe.exponents` derives each one."""

from collections.abc import Iterable
from typing import Any

from mup_lightning.spectral.families import FAMILIES, Family
from mup_lightning.spectral.horizon import NONE, SDE, SDE_LOSES, Horizon
from mup_lightning.spectral.recipe import Exponents, exponents
from mup_lightning.spectral.roles import Role
from mup_lightning.spectral.scale import ONE, Scale, shown
from mup_lightning.tables import text

QUANTITIES: dict[str, str] = {
    "multiplier": "multiplier",
    "init_var": "init variance",
    "lr": "learning rate",
    "weight_decay": "weight decay",
    "eps": "epsilon",
}
"""Columns of a table: attribute of `Exponents` -> what it is called in text."""

LEGEND = "Factors on the base values; n stands for width / base width, L for depth / base depth."

LEGEND_OVER_TIME = "B stands for the tokens of a step / recipe.base_batch, T for those of the run / recipe.base_tokens."


def rows(family: Family, branch_depth: int, horizon: Horizon = NONE) -> dict[Role, Exponents]:
    """One optimizer's own row for every role, as the paper prints it; training may give it hidden matrices alone."""
    return {role: exponents(family, role, branch_depth, horizon=horizon) for role in Role}


def plain_scale(scale: Scale | None, timed: bool = False) -> list[str] | None:
    """[a, b] of n^a L^b as strings such as "-1/2", `timed` [a, b, c, d] of n^a L^b B^c T^d; None stays None."""
    if scale is None:
        return None
    size = [str(scale.asymptotic.width), str(scale.depth)]
    return [*size, shown(scale.batch), shown(scale.tokens)] if timed else size


def as_plain(family: Family, branch_depth: int, horizon: Horizon = NONE) -> dict[str, Any]:
    """One optimizer's table for JSON: {"optimizer", "branch_depth", "roles": {role: {quantity: [a, b] or None}}}.

    With a horizon, exponents are [a, b, c, d], and "averages" has that of the power that each decay is raised to.
    """
    timed = horizon != NONE
    averages = {name: plain_scale(horizon.power, timed) for name in family.averages}
    return {
        "optimizer": family.name,
        "branch_depth": branch_depth,
        "roles": {
            str(role): {quantity: plain_scale(getattr(row, quantity), timed) for quantity in QUANTITIES}
            for role, row in rows(family, branch_depth, horizon).items()
        },
    } | ({"averages": averages} if timed else {})


def as_text(family: Family, branch_depth: int, horizon: Horizon = NONE) -> str:
    """One optimizer's table for the terminal: a row per role, a column per quantity."""
    others = [option for option in family.scaled if option not in QUANTITIES]
    lines = [["role", *QUANTITIES.values(), *others]]
    for role, row in rows(family, branch_depth, horizon).items():
        cells = [getattr(row, quantity) for quantity in QUANTITIES] + [row.scaled[option] for option in others]
        lines.append([str(role), *map(show, cells)])
    notes = [LEGEND, *_over_time([family], horizon), *_notes(family)]
    return "\n".join([f"{family.name}, k = {branch_depth}", "", text(lines), "", *notes])


def all_as_text(branch_depth: int, families: dict[str, Family] = FAMILIES, horizon: Horizon = NONE) -> str:
    """All optimizers, compact: what they share once, then a table per quantity with a row per optimizer."""
    shared = rows(FAMILIES["adamw"], branch_depth)
    parts = [f"All optimizers, k = {branch_depth}. {LEGEND}"]
    for quantity in ("multiplier", "init_var"):
        cells = [show(getattr(shared[role], quantity)) for role in Role]
        parts.append(text([[f"{QUANTITIES[quantity]} (shared)", *Role], ["", *cells]]))
    for quantity in ("lr", "weight_decay", "eps"):
        lines = [[QUANTITIES[quantity], *Role]]
        for family in families.values():
            table = rows(family, branch_depth, horizon)
            if getattr(table[Role.HIDDEN], quantity) is not None:
                lines.append([family.name, *(show(getattr(table[role], quantity)) for role in Role)])
        parts.append(text(lines))
    matrix = ", ".join(family.name for family in FAMILIES.values() if family.whole_matrix)
    parts.append(f"In training, {matrix} get the hidden matrices alone, and adamw all else.")
    parts += _over_time(families.values(), horizon)
    return "\n\n".join(parts)


def show(scale: Scale | None) -> str:
    """A cell of a text table."""
    return "-" if scale is None else str(scale)


def _over_time(families: Iterable[Family], horizon: Horizon) -> list[str]:
    """What the columns do not say of batch and horizon."""
    if horizon == NONE:
        return []
    decays = [f"{family.name} {', '.join(family.averages)}" for family in families if family.averages]
    said = [LEGEND_OVER_TIME]
    if horizon.power != ONE and decays:
        said.append(f"Decays of averages, raised to the power {horizon.power}: {'; '.join(decays)}.")
    if horizon == SDE:
        said.append(f"{SDE_LOSES[0].upper()}{SDE_LOSES[1:]}.")
    return said


def _notes(family: Family) -> list[str]:
    notes = []
    if family.whole_matrix:
        factor = "" if family.aux_lr_factor == 1 else f", at {family.aux_lr_factor:g} times the base learning rate"
        pure = "With recipe.pure it gets embeddings and head too."
        notes.append(f"In training, {family.name} gets the hidden matrices alone; all else gets adamw{factor}. {pure}")
    if family.measured is not None and family.direction is family.measured:
        notes.append("The row is as measured (docs/results/probe.md), not as the paper has it (--variant published).")
    elif family.measured is not None:
        alike = next(known.name for known in FAMILIES.values() if known.direction is family.measured)
        notes.append(f"The row is as published; measured, it is the {alike} row (--variant measured).")
    return notes
