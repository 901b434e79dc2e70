"""The orthogonal factor U Vᵀ of a matrix G = U S Vᵀ, approximately, by Newton-Schulz iterations.

X <- aX + b(XXᵀ)X + c(XXᵀ)²X drives every singular value towards 1 (Jordan et al. 2024, "Muon"). With Muon's
coefficients (3.4445, -4.7750, 2.0315) five steps leave them between about 0.7 and 1.2: fast, and as good for training.

Shapes: b matrices in a batch, r rows, s columns, r <= s after a transpose.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

Coefficients = tuple[float, float, float]

_ROUND = 3
"""Steps on one Gram matrix: rounding errors of small singular values grow by a² a step, and by 140 in two."""


def orthogonalise(
    matrices_brs: torch.Tensor,
    steps: int,
    coefficients: Coefficients,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Newton-Schulz on a batch of matrices.

    Args:
        matrices_brs: (b, r, s), any float dtype; left unchanged.
        steps: iterations.
        coefficients: a, b, c.
        dtype: of the arithmetic.

    Returns:
        (b, r, s) in `dtype`. A zero matrix gives zero.
    """
    # Normalise before the cast: a gradient of 1e-30 must not vanish in it. The Frobenius norm bounds the spectral norm.
    return iterate(unit(matrices_brs).to(dtype), [coefficients] * steps)


def unit(matrices_brs: torch.Tensor) -> torch.Tensor:
    """Each matrix over its Frobenius norm, in float32 or wider; zero stays zero."""
    wide = torch.promote_types(matrices_brs.dtype, torch.float32)
    norm = torch.linalg.vector_norm(matrices_brs, dim=(-2, -1), keepdim=True, dtype=wide)
    return matrices_brs / norm.clamp_min(torch.finfo(wide).tiny)


def iterate(matrices_brs: torch.Tensor, coefficients: Sequence[Coefficients]) -> torch.Tensor:
    """One step X <- aX + b(XXᵀ)X + c(XXᵀ)²X for each (a, b, c), in the matrices' own dtype.

    Where one side is at least twice the other, three steps at a time are done on the small Gram matrix XXᵀ alone:
    a third less work at 1:4, and as accurate in float32 (in bfloat16 it would not be).

    Args:
        matrices_brs: (b, r, s), spectral norms at most 1; left unchanged.
        coefficients: a, b, c of each step.
    """
    rows, columns = matrices_brs.shape[-2:]
    X = matrices_brs.mT if rows > columns else matrices_brs
    narrow = 2 * min(rows, columns) <= max(rows, columns) and X.dtype != torch.bfloat16
    size = _ROUND if narrow else 1
    for start in range(0, len(coefficients), size):
        X = _round(X, coefficients[start : start + size])
    return X.mT if rows > columns else X


def _round(X: torch.Tensor, coefficients: Sequence[Coefficients]) -> torch.Tensor:
    """A few steps. Each is X <- PX with P = aI + bA + cA², A = XXᵀ; so A <- PAP, and the P multiply up."""
    A = X @ X.mT
    product = None
    for a, b, c in coefficients[:-1]:
        P = torch.baddbmm(A, A, A, beta=b, alpha=c)
        P.diagonal(dim1=-2, dim2=-1).add_(a)
        A = P @ A @ P
        product = P if product is None else P @ product
    a, b, c = coefficients[-1]
    B = torch.baddbmm(A, A, A, beta=b, alpha=c)
    if product is None:
        return torch.baddbmm(X, B, X, beta=a)
    return torch.baddbmm(product, B, product, beta=a) @ X
