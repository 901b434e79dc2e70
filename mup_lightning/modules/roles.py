"""The role of a parameter of any module, from how it is used and which of its sides grow."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mup_lightning.errors import UserError
from mup_lightning.modules.trace import Traced, Use
from mup_lightning.spectral.recipe import Recipe, Values
from mup_lightning.spectral.roles import ParameterInfo, Role


def pattern(name: str) -> str:
    """A name without the numbers of layers."""
    return re.sub(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)", "*", name)


def counterpart(name: str, others: Mapping[str, Any], which: str) -> str:
    """The counterpart of a parameter in another size; of a layer that is not there, one with another number."""
    if name in others:
        return name
    alike = [other for other in others if pattern(other) == pattern(name)]
    if not alike:
        raise UserError(f"the module has {name}, and {which} nothing like it; expected sizes of one module")
    # Inside a layer numbers mean the same: as few as possible may differ.
    return min(alike, key=lambda other: sum(a != b for a, b in zip(other.split("."), name.split("."), strict=True)))


@dataclass(frozen=True)
class Conclusion:
    """What was concluded about one parameter.

    Its role and shape, the shape of its counterpart in the base, the matrices of the branch that it is in (or 2), what
    the recipe gives it, and the reason for the role, in words.
    """

    info: ParameterInfo
    base_shape: tuple[int, ...]
    k: int
    values: Values
    why: str


def conclude(
    name: str,
    shape: tuple[int, ...],
    base_shape: tuple[int, ...],
    grows: Sequence[bool],
    r_n: float,
    traced: Traced,
    declared: str | None,
    solved: Callable[[int, float | None], Recipe],
) -> Conclusion:
    """What is concluded of a parameter; raises UserError, with the reason alone, where the role is not certain.

    `r_n` is the width over the base's; `solved` is the recipe of a branch with k matrices, where a side that does not
    grow as the width has its own ratio.
    """
    ratios = [here / there for here, there in zip(shape, base_shape, strict=True)]
    uses = traced.uses.get(name, [])
    if not uses:
        raise UserError("the forward pass does not use it")
    branches = {use.branch for use in uses}
    inside, where = None not in branches, "in a residual branch" if None not in branches else "on the main path"
    k = min((traced.branches[branch].k for branch in branches if branch is not None), default=2)
    if None in branches and len(branches) > 1 and declared is None:
        raise UserError("it is used both in a residual branch and on the main path")
    if declared is not None:
        if declared not in list(Role):
            raise UserError(f"declared as {declared!r}; expected one of {', '.join(Role)}")
        role, why = Role(declared), "declared"
    elif len(shape) < 2:
        role, why = Role.HIDDEN_BIAS if inside else Role.INPUT_BIAS, f"a vector {where}"
    else:
        role, why = _matrix(uses, grows, inside)
        why = f"{why}, {where}" + f" of {k} in a row" * inside
    # Output and input side over the base's; a vector has outputs alone, or none that grow.
    out, inner = (ratios[0] if ratios else 1.0), None
    if len(ratios) > 1 and not role.is_vector:
        out, inner = ratios[:2] if uses[0].outputs_first else ratios[1::-1]
    own = None if role in (Role.INPUT, Role.OUTPUT) or out == r_n else out
    constant = 0.0 if role.is_vector else None
    info = ParameterInfo(name=name, shape=shape, role=role, constant=constant, side="" if own is None else "kv")
    if role is Role.HIDDEN and inner not in (None, r_n):
        raise UserError(f"its inputs are {inner:g} times the base's, the width {r_n:g} times")
    return Conclusion(info, base_shape, k, solved(k, own).of(info), why)


def _matrix(uses: Sequence[Use], grows: Sequence[bool], inside: bool) -> tuple[Role, str]:
    orders = {use.outputs_first for use in uses}
    if orders == {True, False} and not inside and list(grows) == [False, True]:
        return Role.INPUT, "a table of inputs that is the output matrix, too"
    if orders == {None} and not inside and grows[-1] and not any(grows[:-1]):
        return Role.INPUT, "added as it is, and its last side grows"
    if len(orders) != 1 or orders == {None}:
        raise UserError("it is used in no product, or in products of different kinds")
    first = next(iter(orders))
    out, inner = (grows[0], grows[1]) if first else (grows[1], grows[0])
    known = {
        (True, True, True): (Role.HIDDEN, "inputs and outputs grow"),
        (False, True, False): (Role.INPUT, "only its outputs grow"),
        (False, False, True): (Role.OUTPUT, "only its inputs grow"),
    }
    if (inside, out, inner) not in known:
        growing = {(True, True): "both sides grow", (False, False): "no side grows"}.get((out, inner), "one side grows")
        raise UserError(f"{growing}, {'in a residual branch' if inside else 'on the main path'}")
    return known[inside, out, inner]
