"""The largest singular value of many matrices by a few products with a few vectors, never by an SVD.

A block Krylov method (Golub, Luk and Overton 1981; Musco and Musco 2015, arXiv 1504.05477): from a block of start
vectors X the space X, GX, G²X, ... is built, G = WᵀW of the smaller side, with an orthonormal basis Q; the largest
singular value of WQ is the answer. It never lies above ‖W‖₂ (but for rounding). Power iteration, which keeps the last
vector of that space alone, is too slow here: a fresh Gaussian matrix and an orthogonalised update have many singular
values next to the largest. Four vectors at once cost hardly more than one: what takes time is to read the matrix.

Shapes: b matrices in a batch, r and s rows and columns (or the other way round: s is the smaller side), c vectors in a
block, q vectors in the basis.
"""

from __future__ import annotations

import torch

BLOCK = 4
"""Vectors in a block."""

STEPS = 12
"""Products with WᵀW. Measured from random vectors, the worst of eight starts: Gaussian matrices of 1024 columns 0.4 %
below, orthogonalised ones 0.3 %, all others of the test less."""

NARROW, TALL = 256, 16
"""Up to so many columns, and from so many times as many rows on, AᵀA is made once and its norm is found instead. It is
cheaper for the embeddings of narrow models."""

_GONE = 1e-4
"""What is left of a vector, or of a direction in a block, below this share is rounding and would not be orthogonal."""


@torch.no_grad()
def largest_singular_values(
    W_brs: torch.Tensor, start_bcs: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """‖W‖₂ of every matrix in a batch.

    Args:
        W_brs: finite or not; left as it is.
        start_bcs: what an earlier call with almost the same matrices returned, for a better start; None: the same
            random vectors every time. No generator of torch's is touched.

    Returns:
        (b,) the norms, at most 1 % too small in any matrix that we have tried, 0 for a zero matrix, and NaN where an
        entry is not finite; and the vectors to start from the next time.
    """
    A_brs = W_brs if W_brs.shape[1] >= W_brs.shape[2] else W_brs.mT
    b, r, s = A_brs.shape
    largest_b11 = torch.linalg.vector_norm(A_brs, float("inf"), (1, 2), keepdim=True)
    # Products with A/largest, without making it, so that no square overflows or vanishes.
    scale_b11 = torch.where(torch.isfinite(largest_b11) & (largest_b11 > 0), 1 / largest_b11, 0)
    if s <= NARROW and r >= TALL * s:
        square_b, start_bcs = largest_singular_values(_gram(A_brs, scale_b11), start_bcs)
        return square_b.sqrt() * largest_b11[:, 0, 0], start_bcs
    if s <= BLOCK * STEPS:  # the space would be everything
        basis_bqs = torch.eye(s, dtype=A_brs.dtype, device=A_brs.device).expand(b, s, s)
        image_bqr = torch.nan_to_num(A_brs.mT * scale_b11, 0, 0, 0)
    else:
        start_bcs = _random(A_brs) if start_bcs is None else start_bcs
        basis_bqs, image_bqr = _krylov(A_brs, scale_b11, start_bcs)
    squares_bq, vectors_bqq = _eigh(image_bqr @ image_bqr.mT)
    norm_b = squares_bq[:, -1].clamp_min(0).sqrt() * largest_b11[:, 0, 0]
    # The best vectors, and a random one: a direction that all of them miss must have a way in.
    best_bcs = vectors_bqq[:, :, 1 - BLOCK :].mT @ basis_bqs
    random_bcs = _random(A_brs)
    known_bc1 = best_bcs.norm(dim=-1, keepdim=True) > 0.5
    best_bcs = torch.where(known_bc1, best_bcs, random_bcs[:, 1 : best_bcs.shape[1] + 1])
    return norm_b, torch.cat([best_bcs, random_bcs[:, :1]], dim=1)


def _gram(A_brs: torch.Tensor, scale_b11: torch.Tensor) -> torch.Tensor:
    """(b, s, s) AᵀA of the scaled matrices, from a few rows at a time: no copy of the whole, no overflow."""
    gram_bss = A_brs.new_zeros(len(A_brs), A_brs.shape[2], A_brs.shape[2])
    for rows_brs in A_brs.split(4096, dim=1):
        scaled_brs = torch.nan_to_num(rows_brs * scale_b11, 0, 0, 0)
        gram_bss.baddbmm_(scaled_brs.mT, scaled_brs)
    return gram_bss


def _krylov(A_brs: torch.Tensor, scale_b11: torch.Tensor, start_bcs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """An orthonormal basis of the space, (b, q, s), in rows, and A's products with it, (b, q, r).

    Vectors are rows, because products of a wide block with a matrix are ten times as fast on CPU as with a tall one.
    Rows without anything new are zero.
    """
    b, r, s = A_brs.shape
    basis_bqs = A_brs.new_zeros(b, BLOCK * STEPS, s)
    image_bqr = A_brs.new_zeros(b, BLOCK * STEPS, r)
    block_bcs = start_bcs
    for step in range(STEPS):
        place = slice(step * BLOCK, (step + 1) * BLOCK)
        block_bcs = _new_directions(block_bcs, basis_bqs[:, : place.start])
        basis_bqs[:, place] = block_bcs
        image_bcr = torch.nan_to_num((block_bcs @ A_brs.mT) * scale_b11, 0, 0, 0)
        image_bqr[:, place] = image_bcr
        block_bcs = torch.nan_to_num((_unit(image_bcr) @ A_brs) * scale_b11, 0, 0, 0)
    return basis_bqs, image_bqr


def _new_directions(block_bcs: torch.Tensor, basis_bqs: torch.Tensor) -> torch.Tensor:
    """The part of the block orthogonal to the basis, orthonormal; twice, because once leaves too much of the rest.

    A space that is exhausted (a matrix of low rank, or with few distinct singular values) leaves rounding. Made unit
    length it would be counted as a new direction, and the norm come out too large: it becomes 0.
    """
    block_bcs = _unit(block_bcs)
    block_bcs = block_bcs - (block_bcs @ basis_bqs.mT) @ basis_bqs
    left_bc1 = block_bcs.norm(dim=-1, keepdim=True)
    block_bcs = _orthonormal(torch.where(left_bc1 > _GONE, block_bcs, 0))
    return _orthonormal(block_bcs - (block_bcs @ basis_bqs.mT) @ basis_bqs)


def _orthonormal(block_bcs: torch.Tensor) -> torch.Tensor:
    """Orthonormal rows, or zeros, that span the block's rows: by the eigenvectors of their small Gram matrix."""
    block_bcs = _unit(block_bcs)
    values_bc, vectors_bcc = _eigh(block_bcs @ block_bcs.mT)
    kept_bc = values_bc > _GONE * values_bc[:, -1:]
    factor_bc = torch.where(kept_bc, values_bc.clamp_min(torch.finfo(values_bc.dtype).tiny).rsqrt(), 0)
    return (vectors_bcc * factor_bc[:, None, :]).mT @ block_bcs


def _eigh(gram_bqq: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues, rising, and vectors of small matrices; in float64, because float32 has failed to converge."""
    values_bq, vectors_bqq = torch.linalg.eigh(gram_bqq.double())
    return values_bq.to(gram_bqq), vectors_bqq.to(gram_bqq)


def _unit(rows_bcs: torch.Tensor) -> torch.Tensor:
    """Every row divided by its length; zeros stay."""
    return torch.nn.functional.normalize(rows_bcs, dim=-1, eps=torch.finfo(rows_bcs.dtype).tiny)


def _random(A_brs: torch.Tensor) -> torch.Tensor:
    b, _, s = A_brs.shape
    generator = torch.Generator().manual_seed(0)
    return torch.randn(BLOCK, s, generator=generator).to(A_brs).expand(b, BLOCK, s)
