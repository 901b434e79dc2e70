"""What training costs, in floating-point operations (a multiply-add is two)."""

from __future__ import annotations

from dataclasses import dataclass

from mup_lightning.config.schema import ModelConfig


@dataclass(frozen=True)
class Flops:
    """Operations of training.

    Attributes:
        convention_per_token: 6N + 12·L·n·T (Chowdhery et al. 2022, appendix B): N parameters without lookup tables,
            attention as if every token saw all T. It is what others divide by, so use it to compare.
        matmul_per_token: what the matrix products of forward and backward really take here: causal attention, whose
            backward computes the logits again, and the padded vocabulary. Use it to predict time.
        newton_schulz_per_step: of Muon's iterations over all its matrices, as done in bfloat16 on GPU.
        newton_schulz_share: their share in a step of the whole batch, matrix products being the rest.
    """

    convention_per_token: int
    matmul_per_token: int
    newton_schulz_per_step: int
    newton_schulz_share: float


def flops(
    model: ModelConfig,
    parameters: int,
    matrices: list[tuple[int, int]],
    orthogonalised: list[tuple[int, int]],
    steps: int,
    tokens_per_step: int,
) -> Flops:
    """Count.

    Args:
        model: shape and switches.
        parameters: all that are no lookup table: a tied token embedding is none, positions are one.
        matrices: (rows, columns) of every matrix that tokens are multiplied by, the head among them.
        orthogonalised: (rows, columns) of every matrix that Newton-Schulz iterates on.
        steps: iterations.
        tokens_per_step: in the whole batch.
    """
    T, C, L = model.context, model.width, model.depth
    # A weight takes 2 per token forward, 2 for its own gradient, 2 for its input's. Attention has 2 products forward
    # and 5 backward (the logits again, then the gradients of value, probability, query and key), each with 2·C per
    # pair of positions, of which causality leaves (T + 1)/2 per token.
    attention = 7 * C * (T + 1) * L
    matmul = 6 * sum(rows * columns for rows, columns in matrices) + attention
    newton_schulz = sum(steps * _iteration(*sorted(shape)) for shape in orthogonalised)
    return Flops(
        convention_per_token=6 * parameters + 12 * L * C * T,
        matmul_per_token=matmul,
        newton_schulz_per_step=newton_schulz,
        newton_schulz_share=newton_schulz / (newton_schulz + matmul * tokens_per_step),
    )


def _iteration(short: int, long: int) -> int:
    """One Newton-Schulz iteration on X (short x long): XXᵀ, (XXᵀ)², and their sum times X."""
    return 2 * short * short * long + 2 * short**3 + 2 * short * short * long
