"""Muon and Muon-Kimi: A = scale · U Vᵀ of the momentum, by Newton-Schulz (Jordan et al. 2024, "Muon").

    M <- μM + G
    A  = scale · NewtonSchulz(G + μM)      (Nesterov; without it NewtonSchulz(M))
    W <- W - η(A + λW)

Own code, because torch.optim.Muon computes in bfloat16 alone (30 times slower on CPU), one matrix at a time, takes
a fused QKV for one matrix, and scales by √max(1, n_out/n_in), which is not the form that the recipe is derived for.
"""

from typing import Literal

import torch

from mup_lightning.optim.newton_schulz import Coefficient, Iterations, PolarExpress, operations, orthogonalise, scratch
from mup_lightning.optim.rule import Group, Item, Rule, batches, move, split_blocks, split_items
from mup_lightning.spectral.roles import ParameterInfo
from mup_lightning.typed import UnitInterval


class Muon(Rule):
    """State of a parameter: `momentum` of its shape. The scale is 1.

    Attributes:
        momentum: decay of the gradient's accumulation.
        nesterov: look one step ahead along the momentum.
        steps: Newton-Schulz iterations.
        coefficients: a, b, c of one iteration X <- aX + b(XXᵀ)X + c(XXᵀ)²X; or polar_express: own ones for each.
        per_head: queries, keys and values are orthogonalised head by head, with rates derived for that.
        dtype: of the iteration; auto is bfloat16 on GPU and float32 on CPU, where bfloat16 is slow.
    """

    name = "muon"

    momentum: UnitInterval = 0.95
    nesterov: bool = True
    steps: Iterations = 5
    coefficients: tuple[Coefficient, Coefficient, Coefficient] | PolarExpress = (3.4445, -4.7750, 2.0315)
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    per_head: bool = False

    def blocks(self, group: Group, info: ParameterInfo) -> int:
        """Those of the model, or every head's."""
        return info.heads if group["per_head"] and info.heads else info.blocks

    @staticmethod
    def scale(rows: int, columns: int) -> float:
        """The factor on U Vᵀ of one (rows, columns) matrix: A's largest singular value."""
        return 1.0

    def arithmetic(self, group: Group, rows: int, columns: int) -> dict[str, float]:
        """Those of Newton-Schulz."""
        return {"float32" if group["dtype"] == "float32" else "bfloat16": operations(rows, columns, group["steps"])}

    def scratch(self, group: Group, items: list[Item], device: torch.device) -> int:
        """That of Newton-Schulz."""
        return scratch(items, iteration_dtype(group["dtype"], device, torch.float32), device)

    def step(self, group: Group, items: list[Item]) -> None:
        """Matrices of equal shape are iterated as one batch."""
        for batch in batches(items):
            own = batch[0].parameter
            dtype = iteration_dtype(group["dtype"], own.device, own.dtype)
            # No name here holds the sources: they are freed as soon as a narrower copy takes their place.
            directions = orthogonalise(_sources(group, batch), group["steps"], group["coefficients"], dtype)
            scale = self.scale(*directions.shape[1:])
            for item, direction in zip(batch, split_items(directions, batch), strict=True):
                move(group, split_blocks(item.parameter, item.blocks), direction, scale)
            del directions


class MuonKimi(Muon):
    """Muon in Moonlight's form: scale = 0.2·√max(n_in, n_out) (Liu et al. 2025, arXiv 2502.16982).

    The factor gives the update AdamW's usual RMS size, so that both can share one base learning rate.
    """

    name = "muon_kimi"

    @staticmethod
    def scale(rows: int, columns: int) -> float:
        """See `Muon`."""
        return 0.2 * max(rows, columns) ** 0.5


def iteration_dtype(name: str, device: torch.device, own: torch.dtype) -> torch.dtype:
    """The dtype to iterate in: `auto` is float32 on CPU and bfloat16 elsewhere; float64 parameters keep float64."""
    if name == "bfloat16" or (name == "auto" and device.type != "cpu"):
        return torch.bfloat16
    return torch.promote_types(own, torch.float32)


def _sources(group: Group, batch: list[Item]) -> torch.Tensor:
    """Update M and return what is to be orthogonalised, (b, r, s) in memory of its own."""
    sources = []
    for item in batch:
        source = item.state["momentum"].mul_(group["momentum"]).add_(item.gradient)
        if group["nesterov"]:
            source = torch.add(item.gradient, source, alpha=group["momentum"])
        sources.append(split_blocks(source, item.blocks))
    return torch.cat(sources).to(torch.promote_types(sources[0].dtype, torch.float32))
