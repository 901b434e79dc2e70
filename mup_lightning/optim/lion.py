"""Lion: the sign of a momentum that looks a step ahead (Chen et al. 2023, arXiv 2302.06675).

    A  = sign(β₁M + (1 - β₁)G)
    M <- β₂M + (1 - β₂)G
    W <- W - η(A + λW)

Own code, because torch has no Lion.
"""

from dataclasses import dataclass

import torch

from mup_lightning.optim.rule import Group, Item, Rule, chunks, move
from mup_lightning.typed import Typed, UnitInterval


class Lion(Rule):
    """State of a parameter: `momentum` of its shape."""

    name = "lion"

    @dataclass
    class Options(Typed, prefix="rules.lion."):
        """Lion.

        Attributes:
            beta1: share of the momentum, against the gradient, in what the sign is taken of.
            beta2: decay of the momentum.
        """

        beta1: UnitInterval = 0.9
        beta2: UnitInterval = 0.99

    def step(self, group: Group, items: list[Item]) -> None:
        """Chunk by chunk, so that only a chunk of a direction exists at a time."""
        for item in items:
            for weight, G, M in chunks(item.parameter, item.gradient, item.state["momentum"]):
                direction = torch.lerp(M, G, 1.0 - group["beta1"]).sign_()
                M.lerp_(G, 1.0 - group["beta2"])
                move(group, weight, direction)
                del direction  # or the next one would be made before this one is freed
