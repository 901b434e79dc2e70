"""AdamW: A = m̂ / (√v̂ + ε), with m̂ and v̂ the bias-corrected moving averages of G and G² (Loshchilov & Hutter 2019).

The arithmetic is torch's own fused kernel, one pass over memory for all parameters of a group: on CPU 5 to 8 times
faster than torch's default.
"""

import torch
from torch.optim.adamw import adamw

from mup_lightning.optim.rule import Group, Item, Rule
from mup_lightning.typed import NonNegativeFloat, UnitInterval


class AdamW(Rule):
    """State of a parameter: `step` (0-dim float32), `exp_avg` and `exp_avg_sq` of its shape.

    Attributes:
        beta1: decay of the gradient's moving average.
        beta2: decay of the squared gradient's moving average.
        eps: base value of ε, which the recipe scales; null: recipe.eps.
    """

    name = "adamw"
    like_parameter = ("exp_avg", "exp_avg_sq")
    chunks_made = 0  # the kernel is fused

    beta1: UnitInterval = 0.9
    beta2: UnitInterval = 0.95
    eps: NonNegativeFloat | None = None

    def start(self, group: Group, item: Item) -> None:
        """The kernel counts in a tensor."""
        super().start(group, item)
        item.state["step"] = torch.zeros((), dtype=torch.float32, device=item.parameter.device)

    def step(self, group: Group, items: list[Item]) -> None:
        """Decay is decoupled: W <- (1 - ηλ)W first, then -η m̂/(√v̂ + ε)."""
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
