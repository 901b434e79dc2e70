"""The orthogonal factor U Vᵀ of a matrix G = U S Vᵀ, approximately, by Newton-Schulz iterations.

X <- aX + b(XXᵀ)X + c(XXᵀ)²X drives every singular value towards 1 (Jordan et al. 2024, "Muon"). With Muon's
coefficients (3.4445, -4.7750, 2.0315) five steps leave them between about 0.7 and 1.2: fast, and as good for training.

All work is done in the batch's own memory and in at most twice as much again, however many the steps.

Shapes: b matrices in a batch, r rows, s columns; n the shorter side.
"""

from collections.abc import Sequence
from typing import Annotated

import torch

from mup_lightning.optim.rule import Item, batches
from mup_lightning.typed import Bound

Coefficients = tuple[float, float, float]

Coefficient = Annotated[float, Bound("a finite number between -100 and 100", lambda value: abs(value) < 100)]
Iterations = Annotated[int, Bound("a whole number from 1 to 100", lambda value: 1 <= value <= 100)]

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
        matrices_brs: (b, r, s), any float dtype; overwritten.
        steps: iterations.
        coefficients: a, b, c.
        dtype: of the arithmetic.

    Returns:
        (b, r, s) in `dtype`. A zero matrix gives zero.
    """
    # Before the cast, in which a tiny gradient would vanish. The Frobenius norm bounds the spectral norm.
    matrices_brs.div_(units(matrices_brs))
    matrices_brs.div_(norms(matrices_brs))
    matrices_brs = matrices_brs.to(dtype)  # rebound, so that the wider ones are freed
    return iterate(matrices_brs, [coefficients] * steps)


def operations(rows: int, columns: int, steps: int) -> int:
    """Floating-point operations of iterations on X (rows, columns): XXᵀ, (XXᵀ)², and their sum times X."""
    short, long = sorted((rows, columns))
    return steps * (2 * short * short * long + 2 * short**3 + 2 * short * short * long)


def scratch(items: list[Item], dtype: torch.dtype, device: torch.device) -> int:
    """Bytes made at most while the matrices of float32 items are iterated on, batch by batch.

    X and its next value, and the Gram matrices that have no room in the latter: one, or two where three steps at a time
    are done on matrices of 1:2 to 1:3 (see `iterate`). In bfloat16 the float32 source next to X is as much as all that.
    """
    most = 0
    for batch in batches(items, device):
        numel = sum(item.parameter.numel() for item in batch)
        short, long = sorted(batch[0].block_shape)
        grams = 2 if 2 * short <= long < 3 * short else 1
        most = max(most, 6 * numel if dtype == torch.bfloat16 else 4 * (2 * numel + grams * numel * short // long))
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

    Where one side is at least twice the other, three steps at a time are done on the small Gram matrix XXᵀ alone:
    a third less work at 1:4, and as accurate in float32 (in bfloat16 it would not be).

    Args:
        matrices_brs: (b, r, s), spectral norms at most 1; overwritten.
        coefficients: a, b, c of each step.

    Returns:
        (b, r, s), in the memory of the argument or in new memory.
    """
    rows, columns = matrices_brs.shape[-2:]
    short, long = sorted((rows, columns))
    X = matrices_brs.reshape(-1, rows, columns)
    spare = torch.empty_like(X)
    narrow = 2 * short <= long and X.dtype != torch.bfloat16
    size = _ROUND if narrow else 1
    # Those of a round's two or four Gram matrices that do not fit into `spare`; the first never goes there.
    own = [X.new_empty(X.shape[0], short, short) for _ in range(2 if narrow and long < 3 * short else 1)]
    for start in range(0, len(coefficients), size):
        _round(X, coefficients[start : start + size], spare, own)
        X, spare = spare, X
    return X.view(matrices_brs.shape)


def _round(X: torch.Tensor, coefficients: Sequence[Coefficients], spare: torch.Tensor, own: list[torch.Tensor]) -> None:
    """A few steps, from X into `spare`.

    Each is X <- PX with P = aI + bA + cA², A = XXᵀ; so A <- PAP, and the P multiply up. Where X is tall, X <- XPᵀ and
    A = XᵀX.

    Args:
        X: (b, r, s), left unchanged.
        coefficients: a, b, c of each step.
        spare: memory for the result, which is written last of all: until then it holds Gram matrices.
        own: memory for (b, n, n), apart from both.
    """
    tall = X.shape[1] > X.shape[2]
    shared = spare.view(-1).split(own[0].numel())[: max(X.shape[1:]) // min(X.shape[1:])]
    grams = own + [memory.view_as(own[0]) for memory in shared]
    P, A = grams[:2]
    torch.bmm(X.mT if tall else X, X if tall else X.mT, out=A)
    a, b, c = coefficients[-1]
    if len(coefficients) == 1:
        torch.baddbmm(A, A, A, beta=b, alpha=c, out=P)
        torch.baddbmm(X, X if tall else P, P.mT if tall else X, beta=a, out=spare)
        return
    product, free = grams[2:4]
    for step, (first, second, third) in enumerate(coefficients[:-1]):
        torch.baddbmm(A, A, A, beta=second, alpha=third, out=P)
        P.diagonal(dim1=-2, dim2=-1).add_(first)
        torch.bmm(torch.bmm(P, A, out=free), P, out=A)
        if step == 0:
            product.copy_(P)
        else:
            torch.bmm(P, product, out=free)
            product, free = free, product
    torch.baddbmm(A, A, A, beta=b, alpha=c, out=free)
    torch.baddbmm(product, free, product, beta=a, out=P)
    torch.bmm(X if tall else P, P.mT if tall else X, out=spare)
