"""Spectral Sphere Optimizer: steepest descent with ‖W‖₂ held at a radius (Xie et al. 2026, arXiv 2601.08393).

    M <- μM + (1 - μ)G
    W <- W·R/‖W‖₂                          back onto the sphere; R = radius·√(n_out/n_in)
    Φ  = msign(M/‖M‖_F + λΘ)               Θ = u vᵀ of W's largest singular value, λ such that ⟨Θ, Φ⟩ = 0
    W <- W - ηRΦ

So A = RΦ with ‖Φ‖₂ = 1: the step of this norm that lowers the loss most and, to first order, leaves ‖W‖₂ as it is.
The first step also brings the initial weight onto the sphere. Decoupled weight decay is applied as everywhere, but
the next step undoes it. msign(X) = U Vᵀ is iterated by Newton-Schulz with the Polar Express coefficients (Amsel et al.
2025, arXiv 2505.16932); after 8 steps singular values from 3e-4 on are 1.

Own code, because torch has no SSO, and pytorch_optimizer's leaves out R and the return to the sphere.
"""

from __future__ import annotations

from typing import Any

import torch

from mup_lightning.config.optimizers import RuleOptions
from mup_lightning.optim.matrices import equal_shapes, part, per_item, room
from mup_lightning.optim.newton_schulz import iterate, norms
from mup_lightning.optim.rule import Group, Item
from mup_lightning.optim.singular import leading, root

POLAR_EXPRESS = (
    (8.2051, -22.9019, 16.4607),
    (4.0664, -2.8612, 0.5184),
    (3.9096, -2.8234, 0.5250),
    (3.2856, -2.4153, 0.4853),
    (2.2779, -1.6198, 0.3985),
    (1.8726, -1.2307, 0.3585),
    (1.8564, -1.2132, 0.3568),
    (1.8750, -1.2500, 0.3750),
)
"""a, b, c of the first eight steps; all later ones repeat the last."""


class SSO:
    """State of a parameter: `momentum` of its shape."""

    name = "sso"
    whole_matrix = True

    def hyperparameters(self, options: RuleOptions) -> dict[str, Any]:
        """See `Rule`."""
        sso = options.sso
        return {"momentum": sso.momentum, "radius": sso.radius, "steps": sso.steps, "tolerance": sso.tolerance}

    def cost(self, rows: int, columns: int) -> float:
        """See `Rule`."""
        return rows * columns * min(rows, columns)

    def update(self, group: Group, items: list[Item]) -> None:
        """See `Rule`. Matrices of equal shape are solved as one batch."""
        for item in items:
            if not item.state:
                item.state["momentum"] = torch.zeros_like(item.parameter)
            item.state["momentum"].lerp_(item.gradient, 1.0 - group["momentum"])
        for batch in equal_shapes(items):
            _update(group, batch)


def _update(group: Group, batch: list[Item]) -> None:
    wide = torch.promote_types(batch[0].parameter.dtype, torch.float32)
    norm_b11, u_br1, v_bs1 = leading(_weights(batch, wide))
    momenta = [part(item.state["momentum"], item.blocks) for item in batch]
    phi_brs = tangent(momenta, u_br1, v_bs1, group["steps"], group["tolerance"])
    radius_b11 = group["radius"] * _side_ratios(batch, norm_b11) ** 0.5
    decay = 1.0 - group["lr"] * group["weight_decay"]
    factor_b11 = torch.where(norm_b11 > 0, radius_b11 / norm_b11, 1.0) * decay
    phi_brs.mul_(group["lr"] * radius_b11)
    for item, factor, move in zip(batch, per_item(factor_b11, batch), per_item(phi_brs, batch), strict=True):
        part(item.parameter, item.blocks).mul_(factor).sub_(move)


def _weights(batch: list[Item], dtype: torch.dtype) -> torch.Tensor:
    """A copy of a batch's weights, (b, r, s)."""
    weights = room(batch, dtype)
    for item, weight in zip(batch, per_item(weights, batch), strict=True):
        weight.copy_(part(item.parameter, item.blocks))
    return weights


def _side_ratios(items: list[Item], like: torch.Tensor) -> torch.Tensor:
    """n_out/n_in of each matrix in a batch, as (b, 1, 1)."""
    _, rows, columns = part(items[0].parameter, items[0].blocks).shape
    ratio = rows / columns
    ratios = [1 / ratio if item.transposed else ratio for item in items for _ in range(item.blocks)]
    return like.new_tensor(ratios)[:, None, None]


def tangent(
    momenta: list[torch.Tensor], u_br1: torch.Tensor, v_bs1: torch.Tensor, steps: int, tolerance: float
) -> torch.Tensor:
    """Φ = msign(M/‖M‖_F + λΘ) of each matrix, (b, r, s), with Θ = u vᵀ and λ such that |⟨Θ, Φ⟩| <= tolerance.

    Dividing by 1 + |λ|, a bound of the norm, keeps Φ continuous in λ; so there is a root even where M is a multiple
    of Θ, or of low rank.

    Args:
        momenta: M, in pieces of (k, r, s) that make up the batch.
        u_br1: of norm 1 or 0.
        v_bs1: likewise.
        steps: of Newton-Schulz.
        tolerance: see above.
    """
    coefficients = [*POLAR_EXPRESS, *[POLAR_EXPRESS[-1]] * (steps - len(POLAR_EXPRESS))][:steps]
    blocks = [len(momentum) for momentum in momenta]
    norm_b11 = torch.cat([norms(momentum) for momentum in momenta])

    def sign(multiplier_b: torch.Tensor) -> torch.Tensor:
        multiplier_b11 = multiplier_b[:, None, None]
        bound_b11 = 1.0 + multiplier_b11.abs()
        X_brs = norm_b11.new_empty(len(norm_b11), *momenta[0].shape[1:])
        parts = zip(momenta, (norm_b11 * bound_b11).split(blocks), X_brs.split(blocks), strict=True)
        for momentum, divisor, X in parts:
            torch.div(momentum, divisor, out=X)
        X_brs.baddbmm_(u_br1 * (multiplier_b11 / bound_b11), v_bs1.mT)  # Θ itself is never made
        return iterate(X_brs, coefficients)

    def residual(multiplier_b: torch.Tensor) -> torch.Tensor:
        return (u_br1.mT @ (sign(multiplier_b) @ v_bs1))[:, 0, 0]

    return sign(root(residual, norm_b11.new_zeros(len(norm_b11)), tolerance))
