"""Sizes of directions: the RMS operator norm of many tensors at once, and how many singular values carry them."""

from __future__ import annotations

import torch

from mup_lightning.model.parameters import ParameterInfo


def spectral_norms(tensors: list[torch.Tensor]) -> list[float]:
    """‖X‖₂ of matrices, and the length of vectors. Equal shapes are computed together.

    By the eigenvalues of the Gram matrix of the smaller side: exact to rounding, and faster than an SVD.

    Raises:
        FloatingPointError: a tensor holds a NaN or an infinity.
    """
    result = [0.0] * len(tensors)
    by_shape: dict[torch.Size, list[int]] = {}
    for place, tensor in enumerate(tensors):
        by_shape.setdefault(tensor.shape, []).append(place)
    for shape, places in by_shape.items():
        X_brs = torch.stack([tensors[place] for place in places])
        if len(shape) == 1:
            X_brs = X_brs.unsqueeze(-1)
        # Scaled first: squares of a direction of 1e30 would overflow.
        scale_b = X_brs.abs().amax((-2, -1))
        if not torch.isfinite(scale_b).all():
            raise FloatingPointError("a step is not finite")
        X_brs = X_brs / scale_b.clamp_min(torch.finfo(X_brs.dtype).tiny)[:, None, None]
        gram = X_brs @ X_brs.mT if X_brs.shape[1] <= X_brs.shape[2] else X_brs.mT @ X_brs
        for place, value in zip(places, torch.linalg.eigvalsh(gram)[:, -1].clamp_min(0).sqrt() * scale_b, strict=True):
            result[place] = float(value)
    return result


def rms_operator(spectral: float, info: ParameterInfo) -> float:
    """‖X‖_R = √(n_in/n_out)·‖X‖₂ for a direction of this parameter; a vector has n_in = 1."""
    n_out, n_in = info.shape if len(info.shape) > 1 else (*info.shape, 1)
    if info.declaration.transposed:
        n_out, n_in = n_in, n_out
    return (n_in / n_out) ** 0.5 * spectral


def stable_rank(tensor: torch.Tensor, spectral: float) -> float:
    """‖X‖_F²/‖X‖₂²: 1 for a matrix of rank one, the smaller side for U Vᵀ; 0 for zero."""
    return float(tensor.norm() / spectral) ** 2 if spectral > 0 else 0.0
