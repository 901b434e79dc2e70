"""Our own nine, driven as training drives them: roles -> recipe -> groups -> HybridOptimizer.

Whole-matrix families are given every matrix, also the input's and the output's, because the recipe makes a claim about
all of them; vectors go to AdamW, and are then no part of their table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import torch

from mup_lightning.config.optimizers import RuleOptions
from mup_lightning.errors import UserError
from mup_lightning.optim.groups import make_groups
from mup_lightning.optim.hessian import estimate
from mup_lightning.optim.optimizer import HybridOptimizer
from mup_lightning.spectral.families import FAMILIES, Family
from mup_lightning.spectral.recipe import Recipe, Values, exponents
from mup_lightning.spectral.roles import Role
from mup_lightning.studies.probe.candidate import Candidate, Stepper
from mup_lightning.studies.probe.network import ResidualMLP

LR = 2.0**20
"""So large that a weight is lost in the rounding of its step. What is left is A to all of float32's digits, without
anything that a rule does to the weight itself whatever the learning rate (SSO puts it back onto its sphere). The probe
puts the weights back after every step. A power of two, so that dividing by it is exact."""

BASE_EPS = {"adamw": 1e-16, "shampoo": 1e-8}
"""Base ε, as the recipes that ship set it; scaled to each size as the recipe says."""


def our_candidate(
    name: str, branch_depth: int, arguments: dict[str, Any] | None = None, families: Mapping[str, Family] = FAMILIES
) -> Candidate:
    """One of our optimizers.

    Args:
        name: a key of `families` and of `hybrid.RULES`.
        branch_depth: k; ε scales with it.
        arguments: options of its rule (see optim/options.py), and "eps", the base ε where it has one.
        families: what is declared (a test declares something wrong).

    Raises:
        UserError: the rule has no such option, or not with such a value.
    """
    family = families[name]
    roles = tuple(role for role in Role if not (family.whole_matrix and role.is_vector))
    arguments = dict(arguments or {})
    base_eps = BASE_EPS | {key: arguments.pop("eps") for key in (name,) if key in BASE_EPS and "eps" in arguments}
    options = _options(name, arguments)

    def build(network: ResidualMLP, r_n: float, r_L: float) -> Stepper:
        values = {}
        for role in Role:
            mine = family if role in roles else families["adamw"]
            eps = exponents(mine, role, branch_depth).eps
            scaled = None if eps is None else base_eps[mine.name] * eps.at(r_n, r_L)
            values[role] = Values(rule=mine.name, lr=LR, weight_decay=0.0, eps=scaled, init_std=0.0)
        recipe = Recipe(values, network.multipliers)
        return _OurStepper(
            HybridOptimizer(make_groups(dict(network.named_parameters()), network.infos, recipe, options))
        )

    def rate(role: Role, r_n: float, r_L: float) -> float:
        return exponents(family, role, branch_depth).lr.at(r_n, r_L)

    facts = {"arguments": arguments, "base_eps": base_eps.get(name), "declared_family": family.name}
    return Candidate(name, build, LR, rate, torch.float32, roles, dict.fromkeys(roles, family), facts)


def _options(name: str, arguments: dict[str, Any]) -> RuleOptions:
    field = "muon" if name == "muon_kimi" else name
    kind = type(getattr(RuleOptions(), field))
    known = [option.name for option in fields(kind)]
    for key in arguments:
        if key not in known:
            raise UserError(
                f"--arguments has {key!r}, which {name} does not know; it has {', '.join(known)}"
                + (", eps" if name in BASE_EPS else "")
            )
    return RuleOptions(**{field: kind(**arguments)})


class _OurStepper:
    """See `candidate.Stepper`."""

    def __init__(self, optimizer: HybridOptimizer) -> None:
        self.optimizer = optimizer

    def step(self, loss_on_own_labels: Callable[[], torch.Tensor], draws: int) -> None:
        """See `candidate.Stepper`."""
        if wanting := self.optimizer.wants_hessian():
            self.optimizer.give_hessian(wanting, estimate([loss_on_own_labels], wanting, draws))
        self.optimizer.step()
