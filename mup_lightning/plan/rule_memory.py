"""What each update rule needs beside weights and gradients: the state that it keeps, and what it makes while it steps.

All numbers are float32. Shapes: a parameter is k blocks of r x c; a vector of n numbers is one block of n x 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mup_lightning.optim.matrices import equal_shapes
from mup_lightning.optim.optimizer import RULES
from mup_lightning.optim.pieces import piece_numbers
from mup_lightning.optim.rule import Item

Group = dict[str, Any]
State = Callable[[int, int, int, Group], int]


@dataclass(frozen=True)
class RuleMemory:
    """The memory of one rule over all its parameters, in bytes.

    Attributes:
        numbers: parameters that it updates (a count, not bytes).
        state: that it keeps.
        step: that it makes at most while it steps.
        largest: numbers of the largest parameter of a whole-matrix rule, which is never divided; else 0.
        largest_state: state of that parameter; else 0.
    """

    numbers: int
    state: int
    step: int
    largest: int = 0
    largest_state: int = 0


def rule_memory(groups: list[Group], *, half: bool) -> dict[str, RuleMemory]:
    """The memory of every rule that the groups name.

    Args:
        groups: from `make_groups`; parameters may be on the meta device.
        half: Newton-Schulz iterates in bfloat16, as on GPU.

    Raises:
        RuntimeError: a rule is not in `_STATE`; this is a mistake in the code, not the user's.
    """
    result: dict[str, RuleMemory] = {}
    for group in groups:
        name = group["rule"]
        if name not in _STATE:
            raise RuntimeError(f"training/rule_memory.py does not know the state of {name}; add it to _STATE")
        items = [Item(p, p, {}, blocks) for p, blocks in zip(group["params"], group["blocks"], strict=True)]
        states = [4 * _STATE[name](*_shape(item), group) for item in items]
        sizes = [item.parameter.numel() for item in items]
        whole = RULES[name].whole_matrix
        before = result.get(name, RuleMemory(0, 0, 0))
        result[name] = RuleMemory(
            numbers=before.numbers + sum(sizes),
            state=before.state + sum(states),
            step=max(before.step, _step(name, items, half)),
            largest=max(before.largest, *sizes) if whole else 0,
            largest_state=max(before.largest_state, *states) if whole else 0,
        )
    return result


def _shape(item: Item) -> tuple[int, int, int]:
    """k, r, c of a parameter."""
    rows = item.parameter.shape[0]
    return item.blocks, rows // item.blocks, item.parameter.numel() // rows


def _copies(number: int) -> State:
    return lambda k, r, c, group: number * k * r * c


def _sides(k: int, r: int, c: int, group: Group) -> int:
    """Two square matrices (a preconditioner and its root or basis) for every side that is not too long."""
    return 2 * k * sum(side**2 for side in (r, c) if side <= group["max_dimension"])


_STATE: dict[str, State] = {
    "adamw": _copies(2),
    "lion": _copies(1),
    "sophia": _copies(2),
    "sgd": lambda k, r, c, group: k * r * c if group["momentum"] else 0,
    "muon": _copies(1),
    "muon_kimi": _copies(1),
    "sso": _copies(1),
    "shampoo": lambda k, r, c, group: k * r * c + _sides(k, r, c, group),
    "soap": lambda k, r, c, group: 2 * k * r * c + _sides(k, r, c, group),
}
"""Numbers of state for one parameter."""


def _step(name: str, items: list[Item], half: bool) -> int:
    """Bytes made at most while one group steps. AdamW and SGD are fused: none."""
    sizes = [item.parameter.numel() for item in items]
    if name == "lion":  # a piece of a direction at a time
        return 4 * min(max(sizes), piece_numbers(items[0].parameter.device))
    if name == "sophia":  # before some steps, an estimate of the Hessian: a second gradient, and its square
        return 8 * sum(sizes)
    if name in ("muon", "muon_kimi"):
        return max(_newton_schulz(batch, half) for batch in equal_shapes(items))
    if name == "sso":  # W's power iteration (a copy and two Gram matrices) comes before, and takes no more
        return max(_newton_schulz(batch, half=False) for batch in equal_shapes(items))
    if name == "shampoo":  # four float64 squares of a block's longer side (eigh), then one direction
        return max(max(32 * max(r, c) ** 2, 4 * k * r * c) for k, r, c in map(_shape, items))
    if name == "soap":  # three float32 squares of the longer side (QR), and after them two rotated matrices
        return max(max(12 * k * max(r, c) ** 2, 8 * k * r * c) for k, r, c in map(_shape, items))
    return 0


def _newton_schulz(batch: list[Item], half: bool) -> int:
    """Bytes of one batch: X and its next value, and the Gram matrices that have no room in the latter.

    There is one of these, or two where three steps at a time are done on matrices of 1:2 to 1:3 (see
    `newton_schulz.iterate`). In bfloat16 the float32 source beside X is as much as all that, or more.

    Args:
        batch: parameters of one shape.
        half: iterates in bfloat16.
    """
    numbers = sum(item.parameter.numel() for item in batch)
    if half:
        return 6 * numbers
    short, long = sorted(_shape(batch[0])[1:])
    grams = 2 if 2 * short <= long < 3 * short else 1
    return 4 * (2 * numbers + grams * numbers * short // long)
