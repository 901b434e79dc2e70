"""Does the optimizer really do to every matrix what its name says? A look at some updates while training.

Wrappers that flatten or shard parameters have turned Muon into another algorithm before, and nothing but a worse loss
told of it. So now and then the largest singular value of A = ((1 - ηλ)W - W')/η is compared with the one that the rule
promises.
"""

from __future__ import annotations

import lightning.pytorch as pl
import torch

from mup_lightning.callbacks.step import StepCallback, WatchedModule
from mup_lightning.errors import UserError
from mup_lightning.optim.matrices import part
from mup_lightning.optim.muon import Muon
from mup_lightning.optim.optimizer import RULES
from mup_lightning.optim.rule import Group, Item

LARGEST = (0.6, 1.3)
"""Newton-Schulz with Muon's coefficients leaves the largest singular value between 0.68 and 1.21."""

SOME = 2
"""Matrices of a group that are looked at, in each process."""


class UpdateCheck(StepCallback):
    """Every `every` steps, stops the run if an orthogonalised update is not orthogonal.

    Costs a copy of the matrices and a few products with vectors, in the step that it looks at.

    Args:
        every: steps between two looks.

    Attributes:
        largest: the largest singular value of A, over what the rule promises, of each parameter seen last.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.largest: dict[str, float] = {}

    def on_step_start(self, trainer: pl.Trainer, module: WatchedModule, step: int) -> None:
        """See `StepCallback`."""
        module.hybrid.watch = self._look if (step - 1) % self.every == 0 else None
        if module.hybrid.watch:
            self.largest = {}

    def on_step_end(self, trainer: pl.Trainer, module: WatchedModule, step: int) -> None:
        """See `StepCallback`; all processes stop, whoever has seen it."""
        if (step - 1) % self.every:
            return
        wrong = {name: size for name, size in self.largest.items() if not LARGEST[0] < size < LARGEST[1]}
        if trainer.strategy.reduce_boolean_decision(bool(wrong), all=False):
            seen = ", ".join(f"{name} {size:.3g}" for name, size in wrong.items()) or "in another process"
            raise UserError(
                f"step {step}: updates that should be orthogonal are not: the largest singular value over what the "
                f"rule promises, expected about 1, is {seen}. The optimizer was handed something else than whole "
                f"matrices, or did not converge; choose another trainer.strategy or rules.muon.dtype float32"
            )

    def _look(self, group: Group, names: list[str], items: list[Item], before: list[torch.Tensor]) -> None:
        rule = RULES[group["rule"]]
        if not isinstance(rule, Muon) or not group["lr"]:
            return
        kept = 1.0 - group["lr"] * group["weight_decay"]
        for name, item, old in list(zip(names, items, before, strict=True))[:SOME]:
            direction_krs = part((kept * old - item.parameter) / group["lr"], item.blocks)
            if item.gradient.any():
                size = rule.scale(*direction_krs.shape[1:])
                self.largest[name] = float(_largest_singular_value(direction_krs).max()) / size


def _largest_singular_value(matrices_krs: torch.Tensor, iterations: int = 12) -> torch.Tensor:
    """(k, r, s) -> (k,), from below, by power iterations: an update of equal singular values needs but a few."""
    v_ks1 = torch.ones_like(matrices_krs[:, :1].mT)
    for _ in range(iterations):
        v_ks1 = matrices_krs.mT @ (matrices_krs @ v_ks1)
        v_ks1 = v_ks1 / v_ks1.norm(dim=1, keepdim=True).clamp_min(torch.finfo(v_ks1.dtype).tiny)
    return (matrices_krs @ v_ks1).norm(dim=(1, 2))
