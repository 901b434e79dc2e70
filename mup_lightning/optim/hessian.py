"""An estimate of the Hessian's diagonal for Sophia: Gauss-Newton-Bartlett (Liu et al. 2023, arXiv 2305.14342).

    y' ~ softmax(logits) for each of B tokens,  ĝ = gradient of the mean loss against y',  ĥ = B · ĝ ⊙ ĝ

Labels drawn from the model itself make the scores of different tokens independent with mean 0; so ĥ is, in expectation,
the diagonal of the Gauss-Newton matrix, and never negative. B counts tokens, because each one's label is a draw. It is
the whole batch, with draws that depend on a sample's place in the run alone: so the estimate is the same however the
batch is parted over micro-batches and processes.

Shapes: N tokens, C width, V padded vocabulary, K tokens in a chunk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch

from mup_lightning.model.loss import default_chunk


def estimate(
    loss_fns: list[Callable[[], torch.Tensor]],
    parameters: list[torch.Tensor],
    draws: int,
    average: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> list[torch.Tensor]:
    """Estimate the diagonal of the Gauss-Newton matrix. No parameter's .grad is touched.

    Args:
        loss_fns: one for each micro-batch, equal in size: its mean loss (0-dim) over labels drawn from the model's own
            predictions.
        parameters: what to differentiate by; the losses must depend on each.
        draws: B, the number of labels in all micro-batches of all processes.
        average: mean of a tensor over the processes; None: there is one.

    Returns:
        One tensor of its parameter's shape each, not negative.
    """
    totals: list[torch.Tensor] = []
    for loss_fn in loss_fns:
        with torch.enable_grad():
            gradients = list(torch.autograd.grad(loss_fn() / len(loss_fns), parameters))
        totals = [t + g for t, g in zip(totals, gradients, strict=True)] if totals else gradients
    return [(average(total) if average else total).square_().mul_(draws) for total in totals]


@torch.no_grad()
def sample_labels(
    features_NC: torch.Tensor,
    weight_VC: torch.Tensor,
    vocab_size: int,
    uniforms_N: torch.Tensor,
    *,
    chunk: int | None = None,
) -> torch.Tensor:
    """Draw a label for each token from softmax(features · weightᵀ) over the first `vocab_size` symbols.

    Args:
        features_NC: (N, C) features, already times the output multiplier.
        weight_VC: (V, C) output matrix, V >= vocab_size.
        vocab_size: symbols of the tokenizer; padding is never drawn.
        uniforms_N: a number from [0, 1) for each token, which decides its label.
        chunk: tokens whose logits exist at once; None for the loss's own default.

    Returns:
        (N,) int64.
    """
    chunk = chunk or default_chunk(weight_VC.shape[0], weight_VC.device)
    drawn = []
    for x_KC, u_K in zip(features_NC.split(chunk), uniforms_N.to(features_NC.device).split(chunk), strict=True):
        cumulative_KV = (x_KC @ weight_VC[:vocab_size].t()).float().softmax(-1).cumsum(-1)
        # Rounding leaves the last one a little off 1.
        threshold_K1 = u_K.to(cumulative_KV).unsqueeze(1) * cumulative_KV[:, -1:]
        drawn.append(torch.searchsorted(cumulative_KV, threshold_K1, right=True).clamp_(max=vocab_size - 1).squeeze(1))
    return torch.cat(drawn)


def uniforms(seed: int, step: int, counters: list[int], tokens: int) -> torch.Tensor:
    """Numbers from [0, 1) for every token of some samples: a pure function of the samples' places in the run.

    Args:
        seed: of the run.
        step: of the run.
        counters: the samples' places in the global order.
        tokens: of one sample.

    Returns:
        (len(counters) · tokens,) float64.
    """
    drawn = []
    for counter in counters:
        digest = hashlib.sha256(repr((seed, step, counter)).encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        drawn.append(torch.rand(tokens, generator=generator, dtype=torch.float64))
    return torch.cat(drawn)
