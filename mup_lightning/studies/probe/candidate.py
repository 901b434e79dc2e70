"""What can be probed: one of our rules, or any torch optimizer class, behind one small contract."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from mup_lightning.spectral.families import Family
from mup_lightning.spectral.roles import Role
from mup_lightning.studies.probe.network import ResidualMLP


class Stepper(Protocol):
    """An optimizer on one network."""

    def step(self, loss_on_own_labels: Callable[[], torch.Tensor], draws: int) -> None:
        """One step from the parameters' .grad.

        Args:
            loss_on_own_labels: mean loss over labels drawn from the network's own predictions, for rules that
                estimate a Hessian.
            draws: how many labels that mean is taken over.
        """
        ...


@dataclass(frozen=True)
class Candidate:
    """An optimizer that is probed.

    Attributes:
        name: as the user gave it.
        build: (network, r_n, r_L) -> the optimizer on it, with weight decay 0.
        lr: learning rate of every parameter. What the probe measures is divided by it.
        rate: (role, r_n, r_L) -> the learning rate that a user would give: what the recipe makes of a base rate of 1,
            or an unknown class's own default, whatever the size.
        dtype: of the network.
        roles: what of the network it updates by its own rule.
        families: what is declared of it, role by role; empty for an unknown optimizer.
        facts: what is recorded with the result: its arguments, what was found out before the probe, notes.
    """

    name: str
    build: Callable[[ResidualMLP, float, float], Stepper]
    lr: float
    rate: Callable[[Role, float, float], float]
    dtype: torch.dtype
    roles: tuple[Role, ...]
    families: dict[Role, Family] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
