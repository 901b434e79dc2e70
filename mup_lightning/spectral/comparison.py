"""Our recipe against what is used elsewhere, cell by cell, after both are in one convention (see elsewhere.py)."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Any

from mup_lightning.errors import UserError
from mup_lightning.spectral.condition import INIT_VARIANCE
from mup_lightning.spectral.families import FAMILIES
from mup_lightning.spectral.published import PUBLISHED, in_our_convention
from mup_lightning.spectral.recipe import exponents
from mup_lightning.spectral.roles import Role
from mup_lightning.spectral.scale import Scale
from mup_lightning.spectral.tables import LEGEND, QUANTITIES, plain_scale
from mup_lightning.tables import text

AGREES, DIFFERS, NOT_SPECIFIED = "agrees", "differs", "not specified"


@dataclass(frozen=True)
class Cell:
    """One compared cell, both sides in our convention.

    Attributes:
        role: whose.
        quantity: as in `recipe.Exponents`.
        ours: our scale.
        theirs: the published one; None where it is not specified, or where that side has no such thing.
        status: "agrees", "differs" or "not specified".
        why: one line; empty where the cell agrees or there is nothing to say.
    """

    role: Role
    quantity: str
    ours: Scale
    theirs: Scale | None
    status: str
    why: str


def compare(name: str, optimizer: str, branch_depth: int) -> list[Cell]:
    """Our recipe against a published one: a cell for every role and quantity that our family has.

    Args:
        name: a key of `PUBLISHED`.
        optimizer: family name.
        branch_depth: k of our side.

    Raises:
        UserError: the publication has no rule for the optimizer.
    """
    published = PUBLISHED[name]
    if optimizer not in published.tables:
        raise UserError(
            f"{name} has no rule for {optimizer}; compare with --optimizer {' or '.join(sorted(published.tables))}"
        )
    cells = []
    for role, row in published.tables[optimizer].items():
        ours = exponents(FAMILIES[optimizer], role, branch_depth)
        theirs = in_our_convention(row, INIT_VARIANCE[role], adaptive=optimizer != "sgd")
        for quantity in QUANTITIES:
            mine, other = getattr(ours, quantity), theirs[quantity]
            if mine is None:
                continue
            if quantity == "weight_decay" and not row.decayed:
                status = DIFFERS
            elif other is None:
                status = NOT_SPECIFIED
            else:
                status = AGREES if other == mine else DIFFERS
            reasons = {AGREES: {}, DIFFERS: published.why, NOT_SPECIFIED: published.silent}[status]
            cells.append(Cell(role, quantity, mine, other, status, reasons.get(quantity, "")))
    return cells


def as_plain(name: str, optimizer: str, branch_depth: int) -> dict[str, Any]:
    """The comparison as plain values, ready for JSON."""
    return {
        "diff": name,
        "source": PUBLISHED[name].title,
        "optimizer": optimizer,
        "branch_depth": branch_depth,
        "cells": [
            {
                "role": str(cell.role),
                "quantity": cell.quantity,
                "ours": plain_scale(cell.ours),
                "theirs": plain_scale(cell.theirs),
                "status": cell.status,
                "why": cell.why,
            }
            for cell in compare(name, optimizer, branch_depth)
        ],
    }


def as_text(name: str, optimizer: str, branch_depth: int) -> str:
    """The comparison for the terminal: a table of the cells, then the reasons."""
    published, cells = PUBLISHED[name], compare(name, optimizer, branch_depth)
    quantities = [quantity for quantity in QUANTITIES if any(cell.quantity == quantity for cell in cells)]
    found = {(cell.role, cell.quantity): cell for cell in cells}
    lines = [["role", *(QUANTITIES[quantity] for quantity in quantities)]]
    for role in Role:
        lines.append([str(role), *(_mark(found[role, quantity]) for quantity in quantities)])
    counts = [sum(cell.status == status for cell in cells) for status in (AGREES, DIFFERS, NOT_SPECIFIED)]
    in_order = sorted(cells, key=lambda cell: (quantities.index(cell.quantity), cell.status))
    reasons = dict.fromkeys((QUANTITIES[cell.quantity], cell.status, cell.why) for cell in in_order if cell.why)
    return "\n".join(
        [
            textwrap.fill(f"Our recipe, {optimizer} with k = {branch_depth}, against {published.title}", 110),
            "",
            text(lines),
            "",
            "=: agrees; ours | theirs: differs; ?: not specified there. Theirs is put into our init convention first.",
            LEGEND,
            "",
            "{} cells agree, {} differ, {} are not specified.".format(*counts),
            *(f"  {quantity}, {status}: {why}" for quantity, status, why in reasons),
            *textwrap.wrap(published.note, 110),
        ]
    )


def _mark(cell: Cell) -> str:
    if cell.status == AGREES:
        return f"= {cell.ours}"
    return f"{cell.ours} | {'?' if cell.status == NOT_SPECIFIED else cell.theirs or 'none'}"
