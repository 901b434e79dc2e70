"""Checks while training that orthogonalised updates are orthogonal.

A wrapper that flattens or shards parameters can turn Muon into another algorithm, and only a worse loss would show it.
So now and then the largest singular value of A = ((1 - ηλ)W - W')/η is compared with the one that the rule promises.
"""

import lightning.pytorch as pl
import torch

from mup_lightning.callbacks.step import StepCallback, WatchedModule
from mup_lightning.errors import UserError
from mup_lightning.model.parameters import ParameterInfo
from mup_lightning.optim.muon import Muon
from mup_lightning.optim.registry import RULES
from mup_lightning.optim.rule import Group, Item, split_blocks
from mup_lightning.optim.spectral_norm import largest_singular_values

BOUNDS = (0.6, 1.3)
"""Newton-Schulz with Muon's coefficients leaves the largest singular value between 0.68 and 1.21."""

SAMPLE = 2
"""Matrices of a group that are checked, in each process."""


class UpdateCheck(StepCallback):
    """Every `every` steps, stops the run if an orthogonalised update is not orthogonal.

    Costs a copy of the matrices and a few matrix-vector products in the steps that it checks.

    Args:
        every: steps between checks.

    Attributes:
        largest: parameter -> largest singular value of A over what the rule promises, at the last check.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.largest: dict[str, float] = {}

    def on_step_start(self, trainer: pl.Trainer, module: WatchedModule, step: int) -> None:
        """Watch the optimizer in the steps that are checked."""
        module.hybrid.watch = None
        if (step - 1) % self.every == 0:
            module.hybrid.watch, self.largest = self._measure, {}

    def on_step_end(self, trainer: pl.Trainer, module: WatchedModule, step: int) -> None:
        """Stop all processes if one has found a wrong update."""
        if not module.hybrid.watch:
            return
        wrong = {name: size for name, size in self.largest.items() if not BOUNDS[0] < size < BOUNDS[1]}
        if trainer.strategy.reduce_boolean_decision(bool(wrong), all=False):
            seen = ", ".join(f"{name} {size:.3g}" for name, size in wrong.items()) or "in another process"
            raise UserError(
                f"step {step}: updates that should be orthogonal are not: the largest singular value over what the "
                f"rule promises, expected about 1, is {seen}. The optimizer was not given whole matrices, or did not "
                f"converge; choose another trainer.strategy or rules.muon.dtype float32"
            )

    def _measure(self, group: Group, infos: list[ParameterInfo], items: list[Item], before: list[torch.Tensor]) -> None:
        rule = RULES[group["rule"]]
        if not isinstance(rule, Muon) or not group["lr"]:
            return
        kept = 1.0 - group["lr"] * group["weight_decay"]
        for info, item, old in list(zip(infos, items, before, strict=True))[:SAMPLE]:
            direction_krs = split_blocks((kept * old - item.parameter) / group["lr"], item.blocks)
            if item.gradient.any():
                size = rule.scale(*direction_krs.shape[1:])
                self.largest[info.name] = float(largest_singular_values(direction_krs).max()) / size
