"""Our recipe against published ones (CompleteP, muP, Depth-muP), cell by cell, after both are in one convention.

A parametrization has a symmetry: let a weight W enter the network as αW, and shrink W by any factor θ while α grows
by it. The network is the same, and so is its training, if (Tensor Programs IV and V, "abc-symmetry")

    multiplier      α -> α·θ           since α·W stays as it is
    init variance   v -> v/θ²          since W -> W/θ
    learning rate   η -> η/θ           for Adam-like steps, whose size ignores the gradient's: ΔW -> ΔW/θ
                    η -> η/θ²          for SGD, because the gradient ∂loss/∂W = α·∂loss/∂(αW) grows by θ as well
    ε               ε -> ε·θ           since it is added to gradients
    ηλ              stays              the share of W that one step removes has no unit

Rules that look different may therefore be one rule. They are compared after choosing θ so that the init variance is
ours, which is a matter of convention: θ² = v_theirs / v_ours. What then differs, differs in training.
"""

import textwrap
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from mup_lightning.errors import UserError
from mup_lightning.spectral.condition import INIT_VARIANCE
from mup_lightning.spectral.families import FAMILIES
from mup_lightning.spectral.horizon import NONE, SDE
from mup_lightning.spectral.recipe import exponents
from mup_lightning.spectral.roles import Role
from mup_lightning.spectral.scale import HALF, ONE, B, L, N, Scale, T
from mup_lightning.spectral.tables import LEGEND, LEGEND_OVER_TIME, QUANTITIES, plain_scale
from mup_lightning.tables import text

AGREES, DIFFERS, NOT_SPECIFIED = "agrees", "differs", "not specified"

_NAMES = QUANTITIES | {"averages": "power of decays"}

_OVER_TIME = ("lr", "weight_decay", "eps", "averages")


@dataclass(frozen=True)
class Row:
    """One role as a publication gives it, in the publication's own convention. None: it says nothing.

    `removed` is ηλ, the share of the weight that one step removes; `decayed` is False where weight decay excludes it.
    `averages` is the power that decays of averages are raised to.
    """

    multiplier: Scale | None = None
    init_var: Scale | None = None
    lr: Scale | None = None
    removed: Scale | None = None
    eps: Scale | None = None
    decayed: bool = True
    averages: Scale | None = None


@dataclass(frozen=True)
class Published:
    """A published parametrization: its tables, by optimizer, and what to know about the comparison with ours.

    `why` says, by quantity, why it differs where it does; `silent` what to know where it is not specified. `over_time`:
    only what is due to batch and horizon is compared, which is the same for all roles; ours is the time rule sde.
    """

    title: str
    tables: dict[str, dict[Role, Row]]
    why: dict[str, str]
    silent: dict[str, str] = field(default_factory=dict)
    note: str = ""
    over_time: bool = False


_COMPLETEP = {
    Role.INPUT: Row(ONE, ONE, lr=ONE, removed=ONE, eps=ONE / N),
    Role.HIDDEN: Row(ONE / L, ONE / N, lr=ONE / N, removed=ONE, eps=ONE / (N * L)),
    Role.OUTPUT: Row(ONE / N, ONE, lr=ONE, removed=ONE, eps=ONE / N),
    Role.INPUT_BIAS: Row(ONE, ONE, lr=ONE, eps=ONE / N, decayed=False),
    Role.HIDDEN_BIAS: Row(ONE / L, ONE, lr=ONE, eps=ONE / (N * L), decayed=False),
}


def _mup(lr: Scale) -> dict[Role, Row]:
    """Tensor Programs V, table 3, with fan_in = 1, n, n and fan_out = n, n, 1; `lr` is that of inputs and vectors."""
    outside = Row(ONE, ONE, lr, removed=ONE)
    hidden, output = Row(ONE, ONE / N, lr / N, removed=ONE), Row(ONE, ONE / N**2, ONE / N, removed=ONE)
    return dict.fromkeys(Role, outside) | {Role.HIDDEN: hidden, Role.OUTPUT: output}


_MUP_ADAM, _MUP_SGD = _mup(ONE), _mup(N)


def _depth_mup(width: dict[Role, Row], hidden_lr: Scale) -> dict[Role, Row]:
    """Depth-muP: muP in width, 1/√L on every branch, and its own learning rate inside branches."""
    table = {role: Row(row.multiplier, row.init_var, row.lr) for role, row in width.items() if not role.is_vector}
    table[Role.HIDDEN] = Row(ONE / L**HALF, ONE / N, hidden_lr)
    return table | {Role.INPUT_BIAS: Row(), Role.HIDDEN_BIAS: Row()}


def _over_time(lr: Scale, removed: Scale | None = None, **more: Any) -> dict[Role, Row]:
    """Rules that are the same for all roles, of which the hidden one stands for all."""
    return {Role.HIDDEN: Row(ONE, ONE, lr, removed, **more)}


PUBLISHED: dict[str, Published] = {
    "completep": Published(
        title="CompleteP (Dey et al. 2025, arXiv 2505.01618, table 1 and equation 40 at α = 1; weight decay of vectors "
        "from its published code)",
        tables={"adamw": _COMPLETEP},
        why={
            "multiplier": "CompleteP is the k >= 2 answer, 1/L on a branch; one matrix per branch allows 1/√L",
            "lr": "follows from the multiplier: under 1/√L the step must shrink as 1/√L to add 1/L to the stream",
            "eps": "follows from the multiplier: it scales the gradients inside the branch, and ε is added to those",
            "weight_decay": "it does not decay vectors at all; recipe.decay_vectors false does the same here",
        },
        note="Its published code gave the embeddings the hidden ε, until a fix that credits arXiv 2512.22382.",
    ),
    "mup": Published(
        title="muP (Yang, Hu et al. 2022, Tensor Programs V, arXiv 2203.03466, table 3; weight decay as in the mup "
        "package, which holds learning rate x weight decay fixed)",
        tables={"adamw": _MUP_ADAM, "sgd": _MUP_SGD},
        why={
            "multiplier": "muP scales width alone: branches keep their size, and the stream grows with their number",
            "lr": "muP has no depth: the step does not make up for the branch's own multiplier",
            "weight_decay": "follows the learning rate, because learning rate x weight decay is held fixed in both",
        },
        silent={
            "eps": "not in its tables; the mup package has one ε for all groups, although the gradients that it is "
            "added to shrink as 1/n"
        },
        note="At fixed depth (L = 1 in the table) every specified cell agrees. muP also divides the attention logits "
        "by d instead of √d (model.attention_scale 1/d), a constant where the head dimension is fixed.",
    ),
    "depth-mup": Published(
        title="Depth-muP (Yang, Yu, Zhu, Hayou 2023, Tensor Programs VI, arXiv 2310.02244, section 1: 1/√L on a "
        "branch, Adam's learning rate over √L, SGD's constant)",
        tables={"adamw": _depth_mup(_MUP_ADAM, ONE / (N * L**HALF)), "sgd": _depth_mup(_MUP_SGD, ONE)},
        why={
            "multiplier": "derived for one matrix per branch; with two, under 1/√L, the term ΔW₂ΔW₁ vanishes as 1/√L",
            "lr": "follows from the multiplier: one step of a branch adds 1/L to the stream, whatever its multiplier",
        },
        silent=dict.fromkeys(("weight_decay", "eps"), "not part of its rules"),
        note="It is our k = 1: with --branch-depth 1 every specified cell agrees.",
    ),
    "completed-p": Published(
        title="Complete(d)P (Mlodozeniec et al. 2025, arXiv 2512.22382), batch and horizon",
        tables={"adamw": _over_time((B / T) ** HALF, B / T, eps=(T / B) ** HALF, averages=B / T)},
        why={"eps": "it also multiplies ε by √T, but ε is added to gradients, which do not know the horizon"},
        note="It scales 1 - β by B/T, the first order of the power here, with which β stays between 0 and 1.",
        over_time=True,
    ),
    "nanochat": Published(
        title="nanochat (Karpathy 2025, github.com/karpathy/nanochat), batch and horizon",
        tables={"muon": _over_time(B**HALF, B / T)},
        why={
            "lr": "it has no factor for the horizon",
            "weight_decay": "follows the learning rate: the share that a step removes, B/T, is the same in both",
        },
        note="Its batch grows with the horizon, as T^0.383.",
        over_time=True,
    ),
    "hyperp": Published(
        title="HyperP (Ren et al. 2026, arXiv 2603.28743), batch and horizon: Muon on a sphere",
        tables={"muon": _over_time(B**HALF * T ** Fraction("-0.32"))},
        why={"lr": "theirs is a fit: with T^-0.32 longer runs get larger rates than at equal diffusion"},
        silent={"weight_decay": "on the sphere it does nothing to first order"},
        note="Marin's fit for MuonH, a Muon on a sphere too, is T^-0.395 at the same √B.",
        over_time=True,
    ),
}


def in_our_convention(row: Row, init_var: Scale, *, adaptive: bool) -> dict[str, Scale | None]:
    """A published row moved along the symmetry until its init variance is `init_var`: quantity -> scale or None.

    `adaptive`: the step ignores the gradient's size (Adam and the like), unlike SGD's.
    """
    if row.multiplier is None or row.init_var is None or row.lr is None:
        return dict.fromkeys(_NAMES)
    theta = (row.init_var / init_var) ** HALF
    lr = row.lr / theta if adaptive else row.lr / theta**2
    return {
        "multiplier": row.multiplier * theta,
        "init_var": row.init_var / theta**2,
        "lr": lr,
        "weight_decay": None if row.removed is None else row.removed / lr,
        "eps": None if row.eps is None else row.eps * theta,
        "averages": row.averages,
    }


@dataclass(frozen=True)
class Cell:
    """One compared cell, both sides in our convention.

    `theirs` is None where it is not specified, or where that side has no such thing; `status` is "agrees", "differs" or
    "not specified"; `why` is empty where there is nothing to say.
    """

    role: str
    quantity: str
    ours: Scale
    theirs: Scale | None
    status: str
    why: str


def compare(name: str, optimizer: str, branch_depth: int) -> list[Cell]:
    """Our recipe, at k = `branch_depth`, against a published one: a cell for every role and quantity of our family.

    Raises UserError where the publication has no rule for the optimizer.
    """
    published = PUBLISHED[name]
    if optimizer not in published.tables:
        known = " or ".join(sorted(published.tables))
        raise UserError(f"{name} has no rule for {optimizer}; compare with --optimizer {known}")
    cells = []
    for role, row in published.tables[optimizer].items():
        ours = exponents(FAMILIES[optimizer], role, branch_depth, horizon=SDE if published.over_time else NONE)
        convention = ONE if published.over_time else INIT_VARIANCE[role]
        theirs = in_our_convention(row, convention, adaptive=optimizer != "sgd")
        for quantity in _OVER_TIME if published.over_time else QUANTITIES:
            mine, other = getattr(ours, quantity), theirs[quantity]
            if mine is None:
                continue
            mine = mine.over_time if published.over_time else mine
            if quantity == "weight_decay" and not row.decayed:
                status = DIFFERS
            elif other is None:
                status = NOT_SPECIFIED
            else:
                status = AGREES if other == mine.asymptotic else DIFFERS
            reasons = {AGREES: {}, DIFFERS: published.why, NOT_SPECIFIED: published.silent}[status]
            name_of = "every role" if published.over_time else role
            cells.append(Cell(name_of, quantity, mine, other, status, reasons.get(quantity, "")))
    return cells


def as_plain(name: str, optimizer: str, branch_depth: int) -> dict[str, Any]:
    """The comparison as plain values, ready for JSON."""
    timed = PUBLISHED[name].over_time
    return {
        "diff": name,
        "source": PUBLISHED[name].title,
        "optimizer": optimizer,
        "branch_depth": branch_depth,
        "cells": [
            vars(cell)
            | {"role": str(cell.role), "ours": plain_scale(cell.ours, timed), "theirs": plain_scale(cell.theirs, timed)}
            for cell in compare(name, optimizer, branch_depth)
        ],
    }


def as_text(name: str, optimizer: str, branch_depth: int) -> str:
    """The comparison for the terminal: a table of the cells, then the reasons."""
    published, cells = PUBLISHED[name], compare(name, optimizer, branch_depth)
    quantities = [quantity for quantity in _NAMES if any(cell.quantity == quantity for cell in cells)]
    lines = [["role", *(_NAMES[quantity] for quantity in quantities)]]
    marks = {AGREES: "= {ours}", DIFFERS: "{ours} | {theirs}", NOT_SPECIFIED: "{ours} | ?"}
    for role in dict.fromkeys(cell.role for cell in cells):
        mine = [cell for cell in cells if cell.role is role]
        lines.append([role, *(marks[c.status].format(ours=c.ours, theirs=c.theirs or "none") for c in mine)])
    counts = [sum(cell.status == status for cell in cells) for status in (AGREES, DIFFERS, NOT_SPECIFIED)]
    in_order = sorted(cells, key=lambda cell: (quantities.index(cell.quantity), cell.status))
    reasons = dict.fromkeys((_NAMES[cell.quantity], cell.status, cell.why) for cell in in_order if cell.why)
    return "\n".join(
        [
            textwrap.fill(f"Our recipe, {optimizer} with k = {branch_depth}, against {published.title}", 110),
            "",
            text(lines),
            "",
            "=: agrees; ours | theirs: differs; ?: not specified there. Theirs is put into our init convention first.",
            LEGEND_OVER_TIME if published.over_time else LEGEND,
            "",
            "{} cells agree, {} differ, {} are not specified.".format(*counts),
            *(f"  {quantity}, {status}: {why}" for quantity, status, why in reasons),
            *textwrap.wrap(published.note, 110),
        ]
    )
