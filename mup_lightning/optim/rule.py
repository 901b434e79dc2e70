"""The contract of an update rule: one step ΔW = -η(A + λW) for the parameters of one group, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from mup_lightning.config.optimizers import RuleOptions

State = dict[str, Any]
"""What a rule keeps for one parameter: tensors and numbers by name. The rule fills it at the parameter's first step."""

Group = dict[str, Any]
"""A torch parameter group: lr, weight_decay and whatever `Rule.hyperparameters` named."""


@dataclass(frozen=True)
class Item:
    """One parameter of a group as a rule sees it.

    Attributes:
        parameter: updated in place.
        gradient: of the parameter's shape; the rule must not change it.
        state: what the rule keeps for it.
        blocks: matrices of equal shape stacked along dim 0 (3 for a fused QKV); whole-matrix rules part them.
        transposed: it is stored as (n_in, n_out), as embeddings are, and not as (n_out, n_in).
        hessian: a fresh estimate of the Hessian's diagonal, of the parameter's shape; None in most steps.
    """

    parameter: torch.Tensor
    gradient: torch.Tensor
    state: State
    blocks: int
    transposed: bool = False
    hessian: torch.Tensor | None = None


class Rule(Protocol):
    """An update rule. Stateless itself: all state is in the items, so that one optimizer can hold many rules."""

    name: str
    """As in `spectral.families` and in a group's "rule"."""
    whole_matrix: bool
    """It needs whole matrices: a slice or a flat shard would make it another algorithm."""

    def hyperparameters(self, options: RuleOptions) -> dict[str, Any]:
        """What a group of this rule carries beside lr, weight_decay and eps: plain numbers and strings.

        A rule that needs estimates of the Hessian's diagonal names the steps between two of them "hessian_every", and
        counts the steps that it has done in each parameter's state as "step".
        """
        ...

    def cost(self, rows: int, columns: int) -> float:
        """Operations of a step of one (rows, columns) matrix, up to a factor: processes get equal shares of it."""
        ...

    def update(self, group: Group, items: list[Item]) -> None:
        """One step of all the items, in place."""
        ...
