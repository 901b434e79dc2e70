"""Lion: the sign of a momentum that looks a step ahead (Chen et al. 2023, arXiv 2302.06675).

    A  = sign(β₁M + (1 - β₁)G)
    M <- β₂M + (1 - β₂)G
    W <- W - η(A + λW)

Own code, because torch has no Lion.
"""

from __future__ import annotations

from typing import Any

import torch

from mup_lightning.config.optimizers import RuleOptions
from mup_lightning.optim.pieces import pieces
from mup_lightning.optim.rule import Group, Item


class Lion:
    """State of a parameter: `momentum` of its shape."""

    name = "lion"
    whole_matrix = False

    def hyperparameters(self, options: RuleOptions) -> dict[str, Any]:
        """See `Rule`."""
        return {"beta1": options.lion.beta1, "beta2": options.lion.beta2}

    def cost(self, rows: int, columns: int) -> float:
        """See `Rule`."""
        return rows * columns

    def update(self, group: Group, items: list[Item]) -> None:
        """See `Rule`. Piece by piece, so that only a piece of a direction exists at a time."""
        for item in items:
            if not item.state:
                item.state["momentum"] = torch.zeros_like(item.parameter)
            for weight, G, M in pieces(item.parameter, item.gradient, item.state["momentum"]):
                direction = torch.lerp(M, G, 1.0 - group["beta1"]).sign_()
                M.lerp_(G, 1.0 - group["beta2"])
                weight.mul_(1.0 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"])
                del direction  # or the next one would be made beside it
