"""SGD with momentum, as torch.optim.SGD does it, but with decoupled weight decay.

    M <- μM + G
    A  = M      (with Nesterov G + μM)
    W <- W - η(A + λW)

The arithmetic is torch's own fused kernel. Decay is decoupled because the recipe's λ is derived for it; without
momentum both kinds are the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.sgd import sgd

from mup_lightning.config.optimizers import RuleOptions
from mup_lightning.optim.rule import Group, Item


class SGD:
    """State of a parameter: `momentum` of its shape; none where the momentum is 0."""

    name = "sgd"
    whole_matrix = False

    def hyperparameters(self, options: RuleOptions) -> dict[str, Any]:
        """See `Rule`."""
        return {"momentum": options.sgd.momentum, "nesterov": options.sgd.nesterov}

    def cost(self, rows: int, columns: int) -> float:
        """See `Rule`."""
        return rows * columns

    def update(self, group: Group, items: list[Item]) -> None:
        """See `Rule`."""
        for item in items:
            if group["weight_decay"]:
                item.parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
            if group["momentum"] and not item.state:
                item.state["momentum"] = torch.zeros_like(item.parameter)
        sgd(
            [item.parameter for item in items],
            [item.gradient for item in items],
            [item.state.get("momentum") for item in items],
            fused=True,
            weight_decay=0.0,
            momentum=group["momentum"],
            lr=group["lr"],
            dampening=0.0,
            nesterov=group["nesterov"],
            maximize=False,
        )
