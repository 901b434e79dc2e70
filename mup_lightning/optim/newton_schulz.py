"""The orthogonal factor U Vᵀ of a matrix G = U S Vᵀ, approximately, by Newton-Schulz iterations.

X <- aX + b(XXᵀ)X + c(XXᵀ)²X drives every singular value towards 1 (Jordan et al. 2024, "Muon"). With Muon's
coefficients (3.4445, -4.7750, 2.0315) five steps leave them between about 0.7 and 1.2: fast, and as good for training.
Polar Express has a polynomial of its own for each step: the one whose composition with those before it is nearest to 1
on singular values from 1e-3 on (Amsel et al. 2025, arXiv 2505.16932). Five steps bring these to 0.85 to 1.12, where
Muon's leave the smallest at 0.47; eight make them 1.

Shapes: b matrices in a batch, r rows, s columns; n the shorter side.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch

from mup_lightning.optim.rule import Item, batches
from mup_lightning.typed import Bound

Coefficients = tuple[float, float, float]

Coefficient = Annotated[float, Bound("a finite number between -100 and 100", lambda value: abs(value) < 100)]
PolarExpress = Literal["polar_express"]
Iterations = Annotated[int, Bound("a whole number from 1 to 100", lambda value: 1 <= value <= 100)]

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
"""a, b, c of the first eight steps; all later ones repeat the last. All but the last have the paper's margin for
rounding: they take singular values up to 1.01."""

_ROUND = 3
"""Steps on one Gram matrix: rounding errors of small singular values grow by a² a step, and by 140 in two."""


def orthogonalise(
    matrices_brs: torch.Tensor,
    steps: int,
    coefficients: Coefficients | PolarExpress,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Newton-Schulz on a batch of matrices.

    Args:
        matrices_brs: (b, r, s), any float dtype; overwritten.
        steps: iterations.
        coefficients: a, b, c; or those of Polar Express.
        dtype: of the arithmetic.

    Returns:
        (b, r, s) in `dtype`. A zero matrix gives zero.
    """
    # Before the cast, in which a tiny gradient would vanish. The Frobenius norm bounds the spectral norm.
    matrices_brs.div_(units(matrices_brs))
    matrices_brs.div_(norms(matrices_brs))
    matrices_brs = matrices_brs.to(dtype)  # rebound, so that the wider ones are freed
    return iterate(matrices_brs, polar_express(steps) if coefficients == "polar_express" else [coefficients] * steps)


def polar_express(steps: int) -> list[Coefficients]:
    """The coefficients of each of `steps` steps."""
    return [POLAR_EXPRESS[min(step, len(POLAR_EXPRESS) - 1)] for step in range(steps)]


def operations(rows: int, columns: int, steps: int) -> int:
    """Floating-point operations of iterations on X (rows, columns): XXᵀ, (XXᵀ)², and their sum times X."""
    short, long = sorted((rows, columns))
    return steps * (2 * short * short * long + 2 * short**3 + 2 * short * short * long)


def scratch(items: list[Item], dtype: torch.dtype, device: torch.device) -> int:
    """Bytes made at most while the matrices of float32 items are iterated on, batch by batch.

    X and its next value next to two Gram matrices, or to four where three steps at a time are done (see `iterate`). In
    bfloat16 the sources in float32, collected in a batch, may be more.
    """
    most = 0
    for batch in batches(items, device):
        numel = sum(item.parameter.numel() for item in batch)
        short, long = sorted(batch[0].block_shape)
        half = dtype == torch.bfloat16
        grams = numel * short // long * (4 if 2 * short <= long and not half else 2)
        most = max(most, (2 if half else 4) * (2 * numel + grams), 8 * numel if half else 0)
    return most


def units(matrices_brs: torch.Tensor) -> torch.Tensor:
    """The power of two below each matrix's largest entry, (b, 1, 1) in float32 or wider; 1 for a zero matrix.

    A division by it rounds nothing, and leaves a matrix whose squares neither overflow nor vanish. NaN where an entry
    is infinite.
    """
    # On CPU a tenth of the time that the infinity norm takes.
    largest = torch.maximum(matrices_brs.amax((-2, -1), keepdim=True), -matrices_brs.amin((-2, -1), keepdim=True))
    largest = largest.to(torch.promote_types(largest.dtype, torch.float32))
    return torch.where(largest > 0, largest / torch.frexp(largest).mantissa / 2, 1.0)


def norms(matrices_brs: torch.Tensor) -> torch.Tensor:
    """Each matrix's Frobenius norm (b, 1, 1) in float32 or wider; for a zero matrix the smallest number above zero.

    The squares of the entries must be in range; see `units`.
    """
    wide = torch.promote_types(matrices_brs.dtype, torch.float32)
    norm = torch.linalg.vector_norm(matrices_brs, dim=(-2, -1), keepdim=True, dtype=wide)
    return norm.clamp_min(torch.finfo(wide).tiny)


def iterate(matrices_brs: torch.Tensor, coefficients: Sequence[Coefficients]) -> torch.Tensor:
    """One step X <- aX + b(XXᵀ)X + c(XXᵀ)²X for each (a, b, c), in the matrices' own dtype.

    A step is X <- PX with P = aI + bA + cA², A = XXᵀ; where X is tall, X <- XPᵀ and A = XᵀX. Where one side is at least
    twice the other, three steps at a time are done on A alone, as A <- PAP, and the P multiply up: a third less work at
    1:4, and as accurate in float32 (in bfloat16 it would not be).

    Args:
        matrices_brs: (b, r, s), spectral norms at most 1; overwritten.
        coefficients: a, b, c of each step.
    """
    X, spare = matrices_brs, torch.empty_like(matrices_brs)
    tall, (short, long) = X.shape[-2] > X.shape[-1], sorted(X.shape[-2:])
    size = _ROUND if 2 * short <= long and X.dtype != torch.bfloat16 else 1
    for start in range(0, len(coefficients), size):
        *before, (a, b, c) = coefficients[start : start + size]
        A = X.mT @ X if tall else X @ X.mT
        product = None
        for first, second, third in before:
            P = torch.baddbmm(A, A, A, beta=second, alpha=third)
            P.diagonal(dim1=-2, dim2=-1).add_(first)
            A = P @ A @ P
            product = P if product is None else P @ product
        P = torch.baddbmm(A, A, A, beta=b, alpha=c)
        if product is None:
            torch.baddbmm(X, X if tall else P, P.mT if tall else X, beta=a, out=spare)
        else:
            P = torch.baddbmm(product, P, product, beta=a)
            torch.bmm(X if tall else P, P.mT if tall else X, out=spare)
        X, spare = spare, X
    return X
