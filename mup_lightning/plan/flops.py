"""What training costs, in floating-point operations (a multiply-add is two)."""

from __future__ import annotations

from dataclasses import dataclass

from mup_lightning.config.schema import ModelConfig


@dataclass(frozen=True)
class Flops:
    """Operations of training.

    Attributes:
        convention_per_token: 6N + 12·L·n·T (Chowdhery et al. 2022, appendix B): N parameters without lookup tables,
            attention as if every token saw all T. Others divide by it, so use it to compare.
        matmul_per_token: what the matrix products of forward and backward really take here: causal attention, whose
            backward computes the logits again, and the padded vocabulary. Use it to predict time.
        newton_schulz_per_step: of Muon's iterations over all its matrices, as done in bfloat16 on GPU.
        newton_schulz_share: their share in a step of the whole batch, matrix products being the rest.
    """

    convention_per_token: int
    matmul_per_token: int
    newton_schulz_per_step: int
    newton_schulz_share: float


def flops(model: ModelConfig, parameters: int, matrices: int, newton_schulz: int, tokens_per_step: int) -> Flops:
    """Count.

    Args:
        model: shape and switches.
        parameters: elements of all that is not a lookup table: a tied token embedding is not, positions are.
        matrices: elements of all matrices that tokens are multiplied by, the head among them.
        newton_schulz: operations of Newton-Schulz in one step.
        tokens_per_step: in the whole batch.
    """
    T, C, L = model.context, model.width, model.depth
    # A weight takes 2 per token forward, 2 for its own gradient, 2 for its input's. Attention has 2 products forward
    # and 5 backward (the logits again, then the gradients of value, probability, query and key), each with 2·C per
    # pair of positions, of which causality leaves (T + 1)/2 per token.
    matmul = 6 * matrices + 7 * C * (T + 1) * L
    return Flops(
        convention_per_token=6 * parameters + 12 * L * C * T,
        matmul_per_token=matmul,
        newton_schulz_per_step=newton_schulz,
        newton_schulz_share=newton_schulz / (newton_schulz + matmul * tokens_per_step),
    )
