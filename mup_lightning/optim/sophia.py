"""Sophia: momentum over a diagonal of the Hessian, clipped (Liu et al. 2023, arXiv 2305.14342, algorithm 3).

    M <- β₁M + (1 - β₁)G
    h <- β₂h + (1 - β₂)ĥ                   every k-th step, from the first on
    A  = clip(M / max(ρh, ε), -1, 1)       each entry
    W <- W - η(A + λW)

ĥ is an estimate of the Hessian's diagonal that training makes and hands in (`hessian.estimate`,
`HybridOptimizer.give_hessian`). The rule does not ask which estimator made it: Sophia-G and Sophia-H are this same
update. Where h is small or negative the entry is ±1, which is what the recipe counts on.

Own code, because torch has no Sophia.
"""

from __future__ import annotations

from typing import Any

import torch

from mup_lightning.config.optimizers import RuleOptions
from mup_lightning.optim.pieces import pieces
from mup_lightning.optim.rule import Group, Item


class Sophia:
    """State of a parameter: `step` (steps done), `momentum` and `hessian` of its shape."""

    name = "sophia"
    whole_matrix = False

    def hyperparameters(self, options: RuleOptions) -> dict[str, Any]:
        """See `Rule`."""
        sophia = options.sophia
        return {
            "beta1": sophia.beta1,
            "beta2": sophia.beta2,
            "rho": sophia.rho,
            "clip_eps": sophia.eps,
            "hessian_every": sophia.hessian_every,
        }

    def cost(self, rows: int, columns: int) -> float:
        """See `Rule`."""
        return rows * columns

    def update(self, group: Group, items: list[Item]) -> None:
        """See `Rule`. Piece by piece, so that only a piece of a direction exists at a time."""
        for item in items:
            state = item.state
            if not state:
                state["step"] = 0
                state["momentum"], state["hessian"] = (torch.zeros_like(item.parameter) for _ in range(2))
            state["step"] += 1
            if item.hessian is not None:
                state["hessian"].lerp_(item.hessian, 1.0 - group["beta2"])
            for weight, G, M, h in pieces(item.parameter, item.gradient, state["momentum"], state["hessian"]):
                M.lerp_(G, 1.0 - group["beta1"])
                size = h.mul(group["rho"]).clamp_min_(group["clip_eps"])
                direction = torch.div(M, size, out=size).clamp_(-1.0, 1.0)
                weight.mul_(1.0 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"])
                del size, direction  # or the next ones would be made beside them
