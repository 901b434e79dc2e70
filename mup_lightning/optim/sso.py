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

from mup_lightning.optim.matrices import equal_shapes, stack, unstack
from mup_lightning.optim.newton_schulz import iterate, unit
from mup_lightning.optim.options import RuleOptions
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
            W_brs = stack([item.parameter for item in batch], batch)
            wide = torch.promote_types(W_brs.dtype, torch.float32)
            M_brs = unit(stack([item.state["momentum"] for item in batch], batch).to(wide))
            radius_b11 = group["radius"] * _side_ratios(batch, W_brs) ** 0.5
            norm_b11, theta_brs = leading(W_brs.to(wide))
            phi_brs = tangent(M_brs, theta_brs, group["steps"], group["tolerance"])
            decay = 1.0 - group["lr"] * group["weight_decay"]
            W_brs = torch.where(norm_b11 > 0, radius_b11 / norm_b11, 1.0) * decay * W_brs
            W_brs = W_brs - group["lr"] * radius_b11 * phi_brs
            for item, weight in zip(batch, unstack(W_brs, batch), strict=True):
                item.parameter.copy_(weight)


def _side_ratios(items: list[Item], W_brs: torch.Tensor) -> torch.Tensor:
    """n_out/n_in of each matrix in a batch, as (b, 1, 1)."""
    ratio = W_brs.shape[1] / W_brs.shape[2]
    ratios = [1 / ratio if item.transposed else ratio for item in items for _ in range(item.blocks)]
    return W_brs.new_tensor(ratios)[:, None, None]


def tangent(M_brs: torch.Tensor, theta_brs: torch.Tensor, steps: int, tolerance: float) -> torch.Tensor:
    """Φ = msign(M + λΘ) of each matrix, with λ such that |⟨Θ, Φ⟩| <= tolerance.

    Dividing by 1 + |λ|, a bound of the norm, keeps Φ continuous in λ; so there is a root even where M is a multiple
    of Θ, or of low rank.

    Args:
        M_brs: of Frobenius norm 1 or 0.
        theta_brs: of Frobenius norm 1 or 0.
        steps: of Newton-Schulz.
        tolerance: see above.
    """
    coefficients = [*POLAR_EXPRESS, *[POLAR_EXPRESS[-1]] * (steps - len(POLAR_EXPRESS))][:steps]

    def sign(multiplier_b: torch.Tensor) -> torch.Tensor:
        multiplier_b11 = multiplier_b[:, None, None]
        return iterate((M_brs + multiplier_b11 * theta_brs) / (1.0 + multiplier_b11.abs()), coefficients)

    def residual(multiplier_b: torch.Tensor) -> torch.Tensor:
        return (theta_brs * sign(multiplier_b)).sum((-2, -1))

    return sign(root(residual, M_brs.new_zeros(M_brs.shape[0]), tolerance))
