"""An estimate of the Hessian's diagonal for Sophia: Gauss-Newton-Bartlett (Liu et al. 2023, arXiv 2305.14342).

    y' ~ softmax(logits) for each of B tokens,  ĝ = gradient of the mean loss against y',  ĥ = B · ĝ ⊙ ĝ

Labels drawn from the model itself make the scores of different tokens independent with mean 0; so ĥ is, in expectation,
the diagonal of the Gauss-Newton matrix, and never negative. B counts tokens, because each one's label is a draw.

Shapes: N tokens, C width, V padded vocabulary, K tokens in a chunk.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from mup_lightning.model.loss import default_chunk


def estimate(loss_fn: Callable[[], torch.Tensor], parameters: list[torch.Tensor], draws: int) -> list[torch.Tensor]:
    """Estimate the diagonal of the Gauss-Newton matrix. No parameter's .grad is touched.

    Args:
        loss_fn: gives the mean loss (0-dim) over `draws` labels drawn from the model's own predictions.
        parameters: what to differentiate by; the loss must depend on each.
        draws: B, the number of labels that the mean is taken over.

    Returns:
        One tensor of its parameter's shape each, not negative.
    """
    with torch.enable_grad():
        gradients = torch.autograd.grad(loss_fn(), parameters)
    return [gradient.square().mul_(draws) for gradient in gradients]


@torch.no_grad()
def sample_labels(
    features_NC: torch.Tensor,
    weight_VC: torch.Tensor,
    vocab_size: int,
    generator: torch.Generator,
    *,
    chunk: int | None = None,
) -> torch.Tensor:
    """Draw a label for each token from softmax(features · weightᵀ) over the first `vocab_size` symbols.

    Args:
        features_NC: (N, C) features, already times the output multiplier.
        weight_VC: (V, C) output matrix, V >= vocab_size.
        vocab_size: symbols of the tokenizer; padding is never drawn.
        generator: of the draws, on the features' device.
        chunk: tokens whose logits exist at once; None for the loss's own default.

    Returns:
        (N,) int64.
    """
    chunk = chunk or default_chunk(weight_VC.shape[0], weight_VC.device)
    drawn = []
    for x_KC in features_NC.split(chunk):
        probabilities_KV = (x_KC @ weight_VC[:vocab_size].t()).float().softmax(-1)
        drawn.append(torch.multinomial(probabilities_KV, 1, generator=generator).squeeze(1))
    return torch.cat(drawn)
