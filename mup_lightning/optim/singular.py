"""The two numerical tools of a spectral sphere: a matrix's largest singular value, and roots of increasing functions.

Shapes: b matrices in a batch, r rows, s columns.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from mup_lightning.optim.newton_schulz import norms


def leading(W_brs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The largest singular value (b, 1, 1) of each matrix and its vectors u (b, r, 1) and v (b, s, 1).

    All are 0 for a zero matrix. Power iteration by squaring the small Gram matrix, 12 times: W's singular values to the
    power 8192 part even where the two largest are 1 % apart, in 12 products of the small side and without a vector to
    keep between steps.

    Args:
        W_brs: overwritten.
    """
    tall = W_brs.shape[-2] > W_brs.shape[-1]
    norm = norms(W_brs)
    W_brs.div_(norm)  # or the squares of a tiny weight would vanish
    X = W_brs.mT if tall else W_brs
    power = X @ X.mT
    power.div_(norms(power))
    spare = torch.empty_like(power)
    for _ in range(12):
        power, spare = torch.bmm(power, power, out=spare), power
        power.div_(norms(power))
    # Every column is now a multiple of u; the longest one is the most exact.
    longest = power.norm(dim=-2).argmax(-1)
    u = _normalised(power.gather(-1, longest[:, None, None].expand(-1, power.shape[-2], 1)))
    v = _normalised(X.mT @ u)
    value = u.mT @ (X @ v) * norm
    return (value, v, u) if tall else (value, u, v)


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


def _normalised(vector_bn1: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(vector_bn1, dim=-2, eps=torch.finfo(vector_bn1.dtype).tiny)
