"""Lion: the sign of a momentum that looks a step ahead (Chen et al. 2023, arXiv 2302.06675).

    A  = sign(β₁M + (1 - β₁)G)
    M <- β₂M + (1 - β₂)G
    W <- W - η(A + λW)

Own code, because torch has no Lion.
"""

import torch

from mup_lightning.optim.rule import Group, Rule, State
from mup_lightning.typed import UnitInterval


class Lion(Rule):
    """State of a parameter: `momentum` of its shape.

    Attributes:
        beta1: share of the momentum, against the gradient, in what the sign is taken of.
        beta2: decay of the momentum.
    """

    name = "lion"

    beta1: UnitInterval = 0.9
    beta2: UnitInterval = 0.99

    def direction(self, group: Group, state: State, *chunk: torch.Tensor) -> torch.Tensor:
        """See `Rule`."""
        G, M = chunk
        A = torch.lerp(M, G, 1.0 - group["beta1"]).sign_()
        M.lerp_(G, 1.0 - group["beta2"])
        return A
