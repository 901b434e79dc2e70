"""Muon in Moonlight's form: A = 0.2·√max(n_in, n_out) · U Vᵀ of the momentum (Liu et al. 2025, arXiv 2502.16982).

    M <- μM + G
    A  = 0.2·√max(n_in, n_out) · NewtonSchulz(G + μM)      (Nesterov; without it NewtonSchulz(M))
    W <- W - η(A + λW)

The factor gives the update AdamW's usual RMS size, so that both can share one base learning rate.

Own code, because torch.optim.Muon computes in bfloat16 alone (30 times slower on CPU), one matrix at a time, and takes
a fused QKV for one matrix.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch

from mup_lightning.optim.newton_schulz import orthogonalise
from mup_lightning.optim.options import RuleOptions
from mup_lightning.optim.rule import Group, Item


class MuonKimi:
    """State of a parameter: `momentum` of its shape."""

    name = "muon_kimi"
    whole_matrix = True

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

    def update(self, group: Group, items: list[Item]) -> None:
        """See `Rule`. Matrices of equal shape are iterated as one batch."""
        batches: dict[tuple[torch.device, int, int], list[tuple[torch.Tensor, torch.Tensor]]] = defaultdict(list)
        for item in items:
            direction = self._momentum(group, item)
            rows, columns = item.parameter.shape[0] // item.blocks, item.parameter.shape[1]
            for target, source in zip(item.parameter.split(rows), direction.split(rows), strict=True):
                batches[item.parameter.device, rows, columns].append((target, source))
        for (device, rows, columns), pairs in batches.items():
            dtype = _dtype(group["dtype"], device, pairs[0][1].dtype)
            step = -group["lr"] * 0.2 * max(rows, columns) ** 0.5
            for chunk in _chunks(pairs, rows * columns):
                stacked = torch.stack([source for _, source in chunk])
                directions = orthogonalise(stacked, group["steps"], group["coefficients"], dtype)
                for (target, _), direction in zip(chunk, directions, strict=True):
                    target.mul_(1.0 - group["lr"] * group["weight_decay"])
                    target.add_(direction.to(target.dtype), alpha=step)

    @staticmethod
    def _momentum(group: Group, item: Item) -> torch.Tensor:
        """Update M and return what is to be orthogonalised."""
        if not item.state:
            item.state["momentum"] = torch.zeros_like(item.parameter)
        momentum = item.state["momentum"].mul_(group["momentum"]).add_(item.gradient)
        return torch.add(item.gradient, momentum, alpha=group["momentum"]) if group["nesterov"] else momentum


_CHUNK_NUMBERS = 1 << 24
"""Numbers in one batch of matrices at most (64 MB of float32), so that the stack stays one small buffer."""


def _chunks(pairs: list[Any], numbers: int) -> list[list[Any]]:
    size = max(1, _CHUNK_NUMBERS // numbers)
    return [pairs[start : start + size] for start in range(0, len(pairs), size)]


def _dtype(name: str, device: torch.device, own: torch.dtype) -> torch.dtype:
    if name == "auto":
        # float64 parameters, as in tests, keep their precision.
        return torch.bfloat16 if device.type == "cuda" else torch.promote_types(own, torch.float32)
    return torch.bfloat16 if name == "bfloat16" else torch.promote_types(own, torch.float32)
