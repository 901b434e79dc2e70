"""Cross-entropy of a large vocabulary, a chunk of tokens at a time, so that the logits never exist as a whole.

At GPT-2's vocabulary the logits and their gradient are most of a small model's memory. Here each chunk's logits are
made, turned into their gradient in place, and used for the gradients of features and weights before the next chunk
begins: the gradient is taken in the forward pass, and backward only scales it.

Shapes: N tokens, C width, V padded vocabulary, K tokens in a chunk.
"""

from typing import Any

import torch
from torch.autograd.function import once_differentiable

_CHUNK_BYTES = {"cpu": 50 << 20, "cuda": 1 << 30}


def default_chunk(vocab: int, device: torch.device) -> int:
    """Tokens per chunk: about 50 MB of float32 logits on CPU (256 at a vocabulary of 50304), 1 GB elsewhere."""
    return max(1, _CHUNK_BYTES.get(device.type, 1 << 30) // (4 * vocab))


def cross_entropy(
    features_NC: torch.Tensor,
    weight_VC: torch.Tensor,
    targets_N: torch.Tensor,
    vocab_size: int,
    *,
    cap: float | None = None,
    z_loss: float = 0.0,
    chunk: int | None = None,
    measure: bool = False,
    losses_N: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Mean cross-entropy in nats of softmax(logits) over the first `vocab_size` tokens of the vocabulary.

    Logits are features · weightᵀ, within ±`cap` (`soft_cap`). Rows of the weight past `vocab_size` are padding: they
    get probability 0 and gradient 0. Features are already times the output multiplier, and targets int64. Gradients
    have the mean of z_loss · log²Z added to the loss, Z the sum of the logits' exponentials (arXiv 2204.02311, section
    5); the loss that is returned has not, so that it stays comparable.

    Returns the loss (0-dim, float32 or wider) and, asked to `measure` it, the RMS norm of the logits. `chunk` tokens
    have logits at once; None: `default_chunk`. `losses_N` is filled with every token's own loss.
    """
    chunk = chunk or default_chunk(weight_VC.shape[0], weight_VC.device)
    if torch.is_grad_enabled() and (features_NC.requires_grad or weight_VC.requires_grad):
        loss, rms = _ChunkedCrossEntropy.apply(
            features_NC, weight_VC, targets_N, vocab_size, cap, z_loss, chunk, measure, losses_N
        )
    else:
        loss, rms, _, _ = _sweep(
            features_NC, weight_VC, targets_N, vocab_size, cap, 0.0, chunk, losses_N, grad=False, measure=measure
        )
    return loss, rms if measure else None


def soft_cap(logits: torch.Tensor, cap: float | None) -> torch.Tensor:
    """cap · tanh(logits / cap) (Gemma 2, arXiv 2408.00118); None: the logits as they are."""
    return logits if cap is None else cap * torch.tanh(logits / cap)


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features_NC: torch.Tensor,
        weight_VC: torch.Tensor,
        targets_N: torch.Tensor,
        vocab_size: int,
        cap: float | None,
        z_loss: float,
        chunk: int,
        measure: bool,
        losses_N: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        loss, rms, d_features, d_weight = _sweep(
            features_NC, weight_VC, targets_N, vocab_size, cap, z_loss, chunk, losses_N, grad=True, measure=measure
        )
        ctx.save_for_backward(d_features, d_weight)
        ctx.mark_non_differentiable(rms)
        return loss, rms

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        d_features, d_weight = ctx.saved_tensors
        # In place: autograd passes the buffers to .grad, and a copy of the weight's would be as large as the weight.
        return d_features.mul_(d_loss), d_weight.mul_(d_loss), *(None,) * 7


def _sweep(
    features_NC: torch.Tensor,
    weight_VC: torch.Tensor,
    targets_N: torch.Tensor,
    vocab_size: int,
    cap: float | None,
    z_loss: float,
    chunk: int,
    losses_N: torch.Tensor | None,
    *,
    grad: bool,
    measure: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """One pass over the tokens: loss, RMS of the logits, and the gradients of the mean loss (empty without `grad`)."""
    device = features_NC.device
    # Autocast would cast the weight again in every chunk: take its dtype once, and switch it off inside.
    autocast = torch.is_autocast_enabled(device.type)
    dtype = torch.get_autocast_dtype(device.type) if autocast else features_NC.dtype
    tokens, padded = features_NC.shape[0], weight_VC.shape[0]
    wide = torch.promote_types(dtype, torch.float32)
    loss_sum, square_sum = torch.zeros(2, device=device, dtype=wide)
    d_features = torch.empty_like(features_NC) if grad else features_NC.new_empty(0)
    d_weight = torch.zeros_like(weight_VC) if grad else weight_VC.new_empty(0)

    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        x_NC, w_VC = features_NC.detach().to(dtype), weight_VC.detach().to(dtype)
        # The only buffer for logits; in low precision the products need a second one in addition to the float32 one.
        wide_KV = torch.empty(min(chunk, tokens), padded, device=device, dtype=wide)
        low_KV = wide_KV if dtype == wide else torch.empty_like(wide_KV, dtype=dtype)
        for start in range(0, tokens, chunk):
            rows = slice(start, min(start + chunk, tokens))
            x_KC, target_K1 = x_NC[rows], targets_N[rows, None]
            z_KV, z_low_KV = wide_KV[: x_KC.shape[0]], low_KV[: x_KC.shape[0]]
            torch.mm(x_KC, w_VC.t(), out=z_low_KV)
            if dtype != wide:
                z_KV.copy_(z_low_KV)
            slope_KV = None  # d(capped)/d(uncapped)
            if cap is not None:
                z_KV.div_(cap).tanh_()
                slope_KV = z_KV.square().neg_().add_(1.0) if grad else None
                z_KV.mul_(cap)
            if measure:
                square_sum += torch.linalg.vector_norm(z_KV[:, :vocab_size]).square()
            z_KV[:, vocab_size:] = -torch.inf
            target_logit_K1 = z_KV.gather(1, target_K1)
            max_K1 = z_KV.amax(1, keepdim=True)
            e_KV = z_KV.sub_(max_K1).exp_()
            total_K1 = e_KV.sum(1, keepdim=True)
            log_z_K1 = total_K1.log() + max_K1
            loss_K1 = log_z_K1 - target_logit_K1
            loss_sum += loss_K1.sum()
            if losses_N is not None:
                losses_N[rows] = loss_K1[:, 0]
            if not grad:
                continue
            # d(mean loss)/dz = (softmax - onehot)/N, in the logits' own memory.
            d_KV = e_KV.div_(total_K1 * tokens)
            if z_loss:
                d_KV.mul_(1.0 + 2.0 * z_loss * log_z_K1)
            d_KV.scatter_add_(1, target_K1, torch.full_like(target_logit_K1, -1.0 / tokens))
            if slope_KV is not None:
                d_KV.mul_(slope_KV)
            if dtype == wide:
                torch.mm(d_KV, w_VC, out=d_features[rows])
                d_weight.addmm_(d_KV.t(), x_KC)
            else:
                d_low_KV = z_low_KV.copy_(d_KV)
                d_features[rows] = torch.mm(d_low_KV, w_VC)
                d_weight += torch.mm(d_low_KV.t(), x_KC)
    return loss_sum / tokens, (square_sum / (tokens * vocab_size)).sqrt(), d_features, d_weight
