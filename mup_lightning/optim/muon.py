"""Muon: A = U Vᵀ of the momentum, by Newton-Schulz (Jordan et al. 2024, "Muon").

    M <- μM + G
    A  = scale · NewtonSchulz(G + μM)      (Nesterov; without it NewtonSchulz(M)), scale = 1
    W <- W - η(A + λW)

Own code, because torch.optim.Muon computes in bfloat16 alone (30 times slower on CPU), one matrix at a time, takes
a fused QKV for one matrix, and scales by √max(1, n_out/n_in), which is not the form that the recipe is derived for.
"""

from __future__ import annotations

from typing import Any

import torch

from mup_lightning.config.optimizers import RuleOptions
from mup_lightning.optim.matrices import arithmetic, equal_shapes, part, per_item, room
from mup_lightning.optim.newton_schulz import orthogonalise
from mup_lightning.optim.rule import Group, Item


class Muon:
    """State of a parameter: `momentum` of its shape."""

    name = "muon"
    whole_matrix = True

    @staticmethod
    def scale(rows: int, columns: int) -> float:
        """The factor on U Vᵀ of one (rows, columns) matrix."""
        return 1.0

    def hyperparameters(self, options: RuleOptions) -> dict[str, Any]:
        """See `Rule`."""
        muon = options.muon
        return {
            "momentum": muon.momentum,
            "nesterov": muon.nesterov,
            "steps": muon.steps,
            "coefficients": tuple(muon.coefficients),
            "dtype": muon.dtype,
        }

    def cost(self, rows: int, columns: int) -> float:
        """See `Rule`."""
        return rows * columns * min(rows, columns)

    def update(self, group: Group, items: list[Item]) -> None:
        """See `Rule`. Matrices of equal shape are iterated as one batch."""
        for batch in equal_shapes(items):
            self._update(group, batch)

    def _update(self, group: Group, batch: list[Item]) -> None:
        own = batch[0].parameter
        dtype = arithmetic(group["dtype"], own.device, own.dtype)
        # No name here holds the sources: they are freed as soon as a narrower copy takes their place.
        directions = orthogonalise(_sources(group, batch), group["steps"], group["coefficients"], dtype)
        step = -group["lr"] * self.scale(*directions.shape[1:])
        for item, direction in zip(batch, per_item(directions, batch), strict=True):
            weight = part(item.parameter, item.blocks)
            weight.mul_(1.0 - group["lr"] * group["weight_decay"]).add_(direction, alpha=step)


def _sources(group: Group, batch: list[Item]) -> torch.Tensor:
    """Update M and return what is to be orthogonalised, (b, r, s)."""
    sources = room(batch, torch.promote_types(batch[0].parameter.dtype, torch.float32))
    for item, source in zip(batch, per_item(sources, batch), strict=True):
        if not item.state:
            item.state["momentum"] = torch.zeros_like(item.parameter)
        momentum = item.state["momentum"].mul_(group["momentum"]).add_(item.gradient)
        M, G = part(momentum, item.blocks), part(item.gradient, item.blocks)
        if group["nesterov"]:
            torch.add(G, M, alpha=group["momentum"], out=source)
        else:
            source.copy_(M)
    return sources
