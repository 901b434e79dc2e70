"""The orthogonal factor U Vᵀ of a matrix G = U S Vᵀ, approximately, by Newton-Schulz iterations.

X <- aX + b(XXᵀ)X + c(XXᵀ)²X drives every singular value towards 1 (Jordan et al. 2024, "Muon"). With Muon's
coefficients (3.4445, -4.7750, 2.0315) five steps leave them between about 0.7 and 1.2: fast, and as good for training.

Shapes: b matrices in a batch, r rows, s columns, r <= s after a transpose.
"""

from __future__ import annotations

import torch


def orthogonalise(
    matrices_brs: torch.Tensor,
    steps: int,
    coefficients: tuple[float, float, float],
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
    tall = matrices_brs.shape[-2] > matrices_brs.shape[-1]
    X = matrices_brs.mT if tall else matrices_brs
    # Normalise before the cast: a gradient of 1e-30 must not vanish in it. The Frobenius norm bounds the spectral norm.
    norm = torch.linalg.vector_norm(X, dim=(-2, -1), keepdim=True, dtype=torch.promote_types(X.dtype, torch.float32))
    X = (X / norm.clamp_min(torch.finfo(norm.dtype).tiny)).to(dtype)
    a, b, c = coefficients
    for _ in range(steps):
        A = X @ X.mT
        B = torch.baddbmm(A, A, A, beta=b, alpha=c)
        X = torch.baddbmm(X, B, X, beta=a)
    return X.mT if tall else X
