"""Spectral Sphere Optimizer: steepest descent with ‖W‖₂ held at a radius (Xie et al. 2026, arXiv 2601.08393).

    M <- μM + (1 - μ)G
    W <- W·sphere·R/‖W‖₂                   back onto the sphere; R = radius·√(n_out/n_in)
    Φ  = msign(M/‖M‖_F + λΘ)               Θ = u vᵀ of W's largest singular value, λ such that ⟨Θ, Φ⟩ = 0
    W <- W - ηRΦ

So A = RΦ with ‖Φ‖₂ = 1: the step of this norm that lowers the loss most and, to first order, leaves ‖W‖₂ as it is.
The first step also brings the initial weight onto the sphere. Decoupled weight decay is applied as everywhere, but
the next step undoes it. msign(X) = U Vᵀ is iterated by Newton-Schulz with the Polar Express coefficients (Amsel et al.
2025, arXiv 2505.16932); after 8 steps singular values from 3e-4 on are 1.

Own code, because torch has no SSO, and pytorch_optimizer's leaves out R and the return to the sphere.
"""

from collections.abc import Callable

import torch

from mup_lightning.optim.newton_schulz import Iterations, iterate, norms, operations, polar_express, scratch, units
from mup_lightning.optim.rule import Group, Item, Rule, batches, split_blocks, split_items
from mup_lightning.optim.spectral_norm import leading
from mup_lightning.typed import PositiveFloat, UnitInterval


class SSO(Rule):
    """State of a parameter: `momentum` of its shape.

    Attributes:
        momentum: decay of the gradient's moving average.
        radius: of the step and the sphere, in units of sqrt(n_out / n_in).
        sphere: the sphere's radius over the step's; the recipe scales it (of the output matrix, with the width).
        steps: Newton-Schulz iterations of one orthogonalisation.
        tolerance: how far from tangent to the sphere a step may be, |<u v^T, direction>|.
    """

    name = "sso"

    momentum: UnitInterval = 0.9
    radius: PositiveFloat = 1.0
    sphere: PositiveFloat = 1.0
    steps: Iterations = 8
    tolerance: PositiveFloat = 2e-4

    def arithmetic(self, group: Group, rows: int, columns: int) -> dict[str, float]:
        """About ten orthogonalisations to find a step along the sphere, and the powers of one Gram matrix."""
        short, long = sorted((rows, columns))
        powers = 2.0 * short * short * long + 12 * 2.0 * short**3
        return {"float32": 10.0 * operations(rows, columns, group["steps"]) + powers}

    def scratch(self, group: Group, items: list[Item], device: torch.device) -> int:
        """That of Newton-Schulz, and M as one batch; W's power iteration comes before, and takes no more."""
        return scratch(items, torch.float32, device) * 3 // 2

    def step(self, group: Group, items: list[Item]) -> None:
        """Matrices of equal shape are solved as one batch."""
        for item in items:
            item.state["momentum"].lerp_(item.gradient, 1.0 - group["momentum"])
        for batch in batches(items):
            _update(group, batch)


def _update(group: Group, batch: list[Item]) -> None:
    wide = torch.promote_types(batch[0].parameter.dtype, torch.float32)
    norm_b11, u_br1, v_bs1 = leading(torch.cat([split_blocks(item.parameter, item.blocks) for item in batch]).to(wide))
    M_brs = torch.cat([split_blocks(item.state["momentum"], item.blocks) for item in batch]).to(wide)
    phi_brs = tangent(M_brs, u_br1, v_bs1, group["steps"], group["tolerance"])
    rows, columns = batch[0].block_shape
    ratio = rows / columns  # n_out/n_in, where a weight is not transposed
    ratios = [1 / ratio if item.transposed else ratio for item in batch for _ in range(item.blocks)]
    radius_b11 = group["radius"] * norm_b11.new_tensor(ratios)[:, None, None] ** 0.5
    decay = 1.0 - group["lr"] * group["weight_decay"]
    factor_b11 = torch.where(norm_b11 > 0, group["sphere"] * radius_b11 / norm_b11, 1.0) * decay
    phi_brs.mul_(group["lr"] * radius_b11)
    for item, factor, move in zip(batch, split_items(factor_b11, batch), split_items(phi_brs, batch), strict=True):
        split_blocks(item.parameter, item.blocks).mul_(factor).sub_(move)


def tangent(
    M_brs: torch.Tensor, u_br1: torch.Tensor, v_bs1: torch.Tensor, steps: int, tolerance: float
) -> torch.Tensor:
    """Φ = msign(M/‖M‖_F + λΘ) of each matrix, (b, r, s), with Θ = u vᵀ and λ such that |⟨Θ, Φ⟩| <= tolerance.

    Dividing by 1 + |λ|, a bound of the norm, keeps Φ continuous in λ; so there is a root even where M is a multiple
    of Θ, or of low rank.

    Args:
        M_brs: of any size.
        u_br1: of norm 1 or 0.
        v_bs1: likewise.
        steps: of Newton-Schulz.
        tolerance: see above.
    """
    M_brs = M_brs / units(M_brs)
    norm_b11 = norms(M_brs)

    def sign(multiplier_b: torch.Tensor) -> torch.Tensor:
        multiplier_b11 = multiplier_b[:, None, None]
        bound_b11 = 1.0 + multiplier_b11.abs()
        X_brs = M_brs / (norm_b11 * bound_b11)
        X_brs.baddbmm_(u_br1 * (multiplier_b11 / bound_b11), v_bs1.mT)  # Θ itself is never made
        return iterate(X_brs, polar_express(steps))

    def residual(multiplier_b: torch.Tensor) -> torch.Tensor:
        return (u_br1.mT @ (sign(multiplier_b) @ v_bs1))[:, 0, 0]

    return sign(root(residual, norm_b11.new_zeros(len(norm_b11)), tolerance))


def root(function: Callable[[torch.Tensor], torch.Tensor], start_b: torch.Tensor, tolerance: float) -> torch.Tensor:
    """Roots of increasing functions, one an entry, by regula falsi with the Illinois rule: about 8 evaluations.

    Args:
        function: (b,) -> (b,), each entry increasing in its own argument alone and changing sign somewhere.
        start_b: where to begin.
        tolerance: |function| at which an entry is done. After 60 evaluations the best found so far is taken.
    """
    a, f_a = start_b, function(start_b)
    best, f_best = a, f_a
    towards = -f_a.sign()
    b = a + towards
    f_b = function(b)
    for _ in range(60):
        better = f_b.abs() < f_best.abs()
        best, f_best = torch.where(better, b, best), torch.where(better, f_b, f_best)
        if f_best.abs().max() <= tolerance:
            break
        crossed = f_a * f_b <= 0
        between = b - f_b * (b - a) / (f_b - f_a)
        between = torch.where(torch.isfinite(between), between, (a + b) / 2)
        step = torch.where(crossed, between, a + 2 * (b - a))
        f_step = function(step)
        # The end that stays has its value halved, or it would stay for ever.
        a, f_a = torch.where(f_step * f_b <= 0, b, a), torch.where(f_step * f_b <= 0, f_b, f_a * 0.5)
        b, f_b = step, f_step
    return best
