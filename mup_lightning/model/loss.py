"""Cross-entropy of a large vocabulary, a chunk of tokens at a time, so that the logits never exist as a whole.

At GPT-2's vocabulary the logits and their gradient are most of a small model's memory. Here each chunk's logits are
made, turned into their gradient in place, and used for the gradients of features and weights before the next chunk
begins: the gradient is taken in the forward pass, and backward only scales it.

Shapes: N tokens, C width, V padded vocabulary, K tokens in a chunk.
"""

from collections.abc import Callable
from functools import cache
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
    compiled: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Mean cross-entropy in nats of softmax(logits) over the first `vocab_size` tokens of the vocabulary.

    Logits are features · weightᵀ, within ±`cap` (`soft_cap`). Rows of the weight past `vocab_size` are padding: they
    get probability 0 and gradient 0. Features are already times the output multiplier, and targets int64. Gradients
    have the mean of z_loss · log²Z added to the loss, Z the sum of the logits' exponentials (arXiv 2204.02311, section
    5); the loss that is returned has not, so that it stays comparable.

    Returns the loss (0-dim, float32 or wider) and, asked to `measure` it, the RMS norm of the logits. `chunk` tokens
    have logits at once; None: `default_chunk`. `losses_N` is filled with every token's own loss. `compiled`: the
    passes over the logits, about ten, are fused by torch.compile; on a GPU they take longer than the products.
    """
    device = features_NC.device
    chunk = chunk or default_chunk(weight_VC.shape[0], device)
    grad = torch.is_grad_enabled() and (features_NC.requires_grad or weight_VC.requires_grad)
    # Autocast would cast the weight again in every chunk: take its dtype once, and switch it off inside.
    autocast = torch.is_autocast_enabled(device.type)
    dtype = torch.get_autocast_dtype(device.type) if autocast else features_NC.dtype
    tokens, padded = features_NC.shape[0], weight_VC.shape[0]
    wide = torch.promote_types(dtype, torch.float32)
    loss_sum, square_sum = torch.zeros(2, device=device, dtype=wide)
    d_features = torch.empty_like(features_NC) if grad else features_NC.new_empty(0)
    d_weight = torch.zeros_like(weight_VC) if grad else weight_VC.new_empty(0)
    passes = _fused() if compiled else _passes

    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        x_NC, w_VC = features_NC.detach().to(dtype), weight_VC.detach().to(dtype)
        # The only buffer for logits; in low precision eager passes need a float32 one in addition.
        buffer_KV = torch.empty(min(chunk, tokens), padded, device=device, dtype=dtype)
        wide_KV = torch.empty_like(buffer_KV, dtype=wide) if dtype != wide and not compiled else None
        for start in range(0, tokens, chunk):
            rows = slice(start, min(start + chunk, tokens))
            x_KC = x_NC[rows]
            z_KV = torch.mm(x_KC, w_VC.t(), out=buffer_KV[: x_KC.shape[0]])
            spare_KV = None if wide_KV is None else wide_KV[: x_KC.shape[0]]
            losses_K, squares = passes(
                z_KV, spare_KV, targets_N[rows, None], vocab_size, tokens, cap, z_loss, grad=grad, measure=measure
            )
            loss_sum += losses_K.sum()
            square_sum += squares
            if losses_N is not None:
                losses_N[rows] = losses_K
            if not grad:
                continue
            if dtype == wide:
                torch.mm(z_KV, w_VC, out=d_features[rows])
                d_weight.addmm_(z_KV.t(), x_KC)
            else:
                d_features[rows] = torch.mm(z_KV, w_VC)
                d_weight += torch.mm(z_KV.t(), x_KC)
    loss = loss_sum / tokens
    if grad:
        loss = _WithGradients.apply(features_NC, weight_VC, loss, d_features, d_weight)
    return loss, (square_sum / (tokens * vocab_size)).sqrt() if measure else None


def soft_cap(logits: torch.Tensor, cap: float | None) -> torch.Tensor:
    """cap · tanh(logits / cap) (Gemma 2, arXiv 2408.00118); None: the logits as they are."""
    return logits if cap is None else cap * torch.tanh(logits / cap)


class _WithGradients(torch.autograd.Function):
    """A loss whose gradients by features and weight are known already."""

    @staticmethod
    def forward(ctx: Any, features: Any, weight: Any, loss: torch.Tensor, *gradients: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(*gradients)
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # In place: autograd passes the buffers to .grad, and a copy of the weight's would be as large as the weight.
        return *(gradient.mul_(d_loss) for gradient in ctx.saved_tensors), None, None, None


def _passes(
    logits_KV: torch.Tensor,
    spare_KV: torch.Tensor | None,
    target_K1: torch.Tensor,
    vocab_size: int,
    tokens: int,
    cap: float | None,
    z_loss: float,
    *,
    grad: bool,
    measure: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens' losses (K,) and the sum of all capped logits' squares; `logits_KV` turns into d(mean loss)/dz.

    The gradient is that of a mean over `tokens`. `spare_KV` is memory for float32 logits, where those are narrower.
    """
    wide = torch.promote_types(logits_KV.dtype, torch.float32)
    z_KV = logits_KV.to(wide) if spare_KV is None else spare_KV.copy_(logits_KV)
    slope_KV, squares = None, z_KV.new_zeros(())  # d(capped)/d(uncapped)
    if cap is not None:
        z_KV.div_(cap).tanh_()
        slope_KV = z_KV.square().neg_().add_(1.0) if grad else None
        z_KV.mul_(cap)
    if measure:
        squares = torch.linalg.vector_norm(z_KV[:, :vocab_size]).square()
    z_KV[:, vocab_size:] = -torch.inf
    target_logit_K1 = z_KV.gather(1, target_K1)
    max_K1 = z_KV.amax(1, keepdim=True)
    e_KV = z_KV.sub_(max_K1).exp_()
    total_K1 = e_KV.sum(1, keepdim=True)
    log_z_K1 = total_K1.log() + max_K1
    if grad:
        # d(mean loss)/dz = (softmax - onehot)/N, in the logits' own memory.
        d_KV = e_KV.div_(total_K1 * tokens)
        if z_loss:
            d_KV.mul_(1.0 + 2.0 * z_loss * log_z_K1)
        # Single entries would end a fused pass, and a comparison be one more eager pass. Not by scatter_add_, which
        # adds up in no fixed order on a GPU.
        if torch.compiler.is_compiling():
            d_KV = d_KV - (torch.arange(d_KV.shape[1], device=d_KV.device) == target_K1).to(wide) / tokens
        else:
            d_KV[torch.arange(len(d_KV), device=d_KV.device), target_K1[:, 0]] -= 1.0 / tokens
        if slope_KV is not None:
            d_KV.mul_(slope_KV)
        if d_KV is not logits_KV:
            logits_KV.copy_(d_KV)
    return (log_z_K1 - target_logit_K1)[:, 0], squares


@cache
def _fused() -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """`_passes`, compiled. Made on first use, since importing the compiler takes a second."""
    return torch.compile(_passes)
