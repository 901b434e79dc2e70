"""AdamW: A = m̂ / (√v̂ + ε), with m̂ and v̂ the bias-corrected moving averages of G and G² (Loshchilov & Hutter 2019).

The arithmetic is torch's own fused kernel, one pass over memory for all parameters of a group: on CPU 5 to 8 times
faster than torch's default.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.adamw import adamw

from mup_lightning.config.optimizers import RuleOptions
from mup_lightning.optim.rule import Group, Item


class AdamW:
    """State of a parameter: `step` (0-dim float32), `exp_avg` and `exp_avg_sq` of its shape."""

    name = "adamw"
    whole_matrix = False

    def hyperparameters(self, options: RuleOptions) -> dict[str, Any]:
        """See `Rule`."""
        return {"beta1": options.adamw.beta1, "beta2": options.adamw.beta2}

    def cost(self, rows: int, columns: int) -> float:
        """See `Rule`."""
        return rows * columns

    def update(self, group: Group, items: list[Item]) -> None:
        """See `Rule`. Decay is decoupled: W <- (1 - ηλ)W first, then -η m̂/(√v̂ + ε)."""
        for item in items:
            if not item.state:
                item.state["step"] = torch.zeros((), dtype=torch.float32, device=item.parameter.device)
                item.state["exp_avg"] = torch.zeros_like(item.parameter)
                item.state["exp_avg_sq"] = torch.zeros_like(item.parameter)
        adamw(
            [item.parameter for item in items],
            [item.gradient for item in items],
            [item.state["exp_avg"] for item in items],
            [item.state["exp_avg_sq"] for item in items],
            [],
            [item.state["step"] for item in items],
            fused=True,
            amsgrad=False,
            beta1=group["beta1"],
            beta2=group["beta2"],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
