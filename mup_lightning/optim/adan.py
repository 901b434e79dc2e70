"""Adan: Adam with Nesterov's look ahead along the gradient's change (Xie et al. 2022, arXiv 2208.06677, algorithm 1).

    D  = G - G of the step before           0 in the first step
    M <- β₁M + (1 - β₁)G,  V <- β₂V + (1 - β₂)D,  N <- β₃N + (1 - β₃)(G + β₂D)²
    A  = (M̂ + β₂V̂) / (√N̂ + ε)               M̂, V̂, N̂ over 1 - βᵗ, as Adam corrects its averages
    W <- W - η(A + λW)

The decays are the paper's 1 - β. At the first step A = sign(G), up to ε. Own code, because torch has no Adan.
"""

import torch

from mup_lightning.optim.rule import Group, Rule, State
from mup_lightning.typed import NonNegativeFloat, UnitInterval


class Adan(Rule):
    """State of a parameter: `step` (steps done), and three averages and the previous gradient of its shape.

    Attributes:
        beta1: decay of the gradient's moving average.
        beta2: decay of the moving average of the gradient's change.
        beta3: decay of the squared gradient's moving average.
        eps: base value of ε, which the recipe scales; null: recipe.eps.
    """

    name = "adan"
    like_parameter = ("exp_avg", "exp_avg_diff", "exp_avg_sq", "previous_gradient")
    counted = True
    chunks_made = 3  # the change, the direction and its size

    beta1: UnitInterval = 0.98
    beta2: UnitInterval = 0.92
    beta3: UnitInterval = 0.99
    eps: NonNegativeFloat | None = None

    def direction(self, group: Group, state: State, *chunk: torch.Tensor) -> torch.Tensor:
        """See `Rule`."""
        G, M, V, N, previous = chunk
        beta1, beta2, beta3 = group["beta1"], group["beta2"], group["beta3"]
        first, second, third = (1.0 - beta ** state["step"] for beta in (beta1, beta2, beta3))
        change = torch.zeros_like(G) if state["step"] == 1 else torch.sub(G, previous)
        previous.copy_(G)
        M.lerp_(G, 1.0 - beta1)
        V.lerp_(change, 1.0 - beta2)
        ahead = change.mul_(beta2).add_(G)
        N.mul_(beta3).addcmul_(ahead, ahead, value=1.0 - beta3)
        A = torch.mul(M, 1.0 / first, out=ahead).add_(V, alpha=beta2 / second)
        return A.div_((N / third).sqrt_().add_(group["eps"]))
