"""Sophia: momentum over a diagonal of the Hessian, clipped (Liu et al. 2023, arXiv 2305.14342, algorithm 3).

    M <- β₁M + (1 - β₁)G
    h <- β₂h + (1 - β₂)ĥ                   every k-th step, from the first on
    A  = clip(M / max(ρh, ε), -1, 1)       each entry
    W <- W - η(A + λW)

ĥ is an estimate of the Hessian's diagonal that training makes and hands in (`HybridOptimizer.give_hessian`). The rule
does not ask which estimator made it: Sophia-G and Sophia-H are this same update. Where h is small or negative the entry
is ±1, which is what the recipe counts on. Own code, because torch has no Sophia.

The estimator here is Gauss-Newton-Bartlett:

    y' ~ softmax(logits) for each of B tokens,  ĝ = gradient of the mean loss against y',  ĥ = B · ĝ ⊙ ĝ

Labels drawn from the model itself make the scores of different tokens independent with mean 0; so ĥ is, in expectation,
the diagonal of the Gauss-Newton matrix, and never negative. B counts tokens, because each one's label is a draw. It is
the whole batch, with draws that depend only on a sample's place in the run: so the estimate is the same however the
batch is split over micro-batches and processes.

Shapes: N tokens, C width, V padded vocabulary, K tokens in a chunk.
"""

from collections.abc import Callable, Sequence

import torch

from mup_lightning.model.loss import default_chunk, soft_cap
from mup_lightning.model.parameters import stable_seed
from mup_lightning.optim.rule import Group, Item, Rule, State
from mup_lightning.typed import PositiveFloat, PositiveInt, UnitInterval


class Sophia(Rule):
    """State of a parameter: `step` (steps done), `momentum` and `hessian` of its shape.

    Attributes:
        beta1: decay of the gradient's moving average.
        beta2: decay of the Hessian's moving average, per estimate.
        rho: size of the Hessian in the denominator (the paper's gamma): the larger, the fewer entries are clipped.
            A base value, which the recipe scales so that the clipped share stays.
        hessian_every: steps from one estimate of the Hessian to the next.
        eps: least denominator; a base value, which the recipe scales.
    """

    name = "sophia"
    like_parameter = ("momentum", "hessian")
    counted = True

    beta1: UnitInterval = 0.965
    beta2: UnitInterval = 0.99
    rho: PositiveFloat = 0.05
    hessian_every: PositiveInt = 10
    eps: PositiveFloat = 1e-12

    def scratch(self, group: Group, items: list[Item], device: torch.device) -> int:
        """Before some steps an estimate of the Hessian: a second gradient, and its square."""
        return 8 * sum(item.parameter.numel() for item in items)

    def step(self, group: Group, items: list[Item]) -> None:
        """Take in new estimates of the Hessian first."""
        for item in items:
            if item.hessian is not None:
                item.state["hessian"].lerp_(item.hessian, 1.0 - group["beta2"])
        super().step(group, items)

    def direction(self, group: Group, state: State, *chunk: torch.Tensor) -> torch.Tensor:
        """See `Rule`."""
        G, M, h = chunk
        M.lerp_(G, 1.0 - group["beta1"])
        size = h.mul(group["rho"]).clamp_min_(group["eps"])
        return torch.div(M, size, out=size).clamp_(-1.0, 1.0)


def estimate(
    loss_fns: list[Callable[[], torch.Tensor]],
    parameters: list[torch.Tensor],
    draws: int,
    average: Callable[[torch.Tensor], torch.Tensor] | None = None,
    differentiate: Callable[[torch.Tensor, list[torch.Tensor]], Sequence[torch.Tensor]] = torch.autograd.grad,
) -> list[torch.Tensor]:
    """Estimate the diagonal of the Gauss-Newton matrix. No parameter's .grad is touched.

    Args:
        loss_fns: one for each micro-batch, equal in size: its mean loss (0-dim) over labels drawn from the model's own
            predictions.
        parameters: what to differentiate by; the losses must depend on each.
        draws: B, the number of labels in all micro-batches of all processes.
        average: mean of a tensor over the processes; None: there is one.
        differentiate: a loss by parameters; FSDP has a way of its own.

    Returns:
        One tensor of its parameter's shape each, not negative.
    """
    totals: list[torch.Tensor] = []
    for loss_fn in loss_fns:
        with torch.enable_grad():
            gradients = list(differentiate(loss_fn() / len(loss_fns), parameters))
        totals = [t + g for t, g in zip(totals, gradients, strict=True)] if totals else gradients
    return [(average(total) if average else total).square_().mul_(draws) for total in totals]


@torch.no_grad()
def sample_labels(
    features_NC: torch.Tensor,
    weight_VC: torch.Tensor,
    vocab_size: int,
    uniforms_N: torch.Tensor,
    *,
    cap: float | None = None,
    chunk: int | None = None,
) -> torch.Tensor:
    """Draw a label for each token from softmax(logits) over the first `vocab_size` tokens.

    Args:
        features_NC: (N, C) features, already times the output multiplier.
        weight_VC: (V, C) output matrix, V >= vocab_size.
        vocab_size: size of the vocabulary; padding is never drawn.
        uniforms_N: a number from [0, 1) for each token, which decides its label.
        cap: of the logits, which are features · weightᵀ; see `loss.soft_cap`.
        chunk: tokens whose logits exist at once; None for the loss's own default.

    Returns:
        (N,) int64.
    """
    chunk = chunk or default_chunk(weight_VC.shape[0], weight_VC.device)
    drawn = []
    for x_KC, u_K in zip(features_NC.split(chunk), uniforms_N.to(features_NC.device).split(chunk), strict=True):
        cumulative_KV = soft_cap((x_KC @ weight_VC[:vocab_size].t()).float(), cap).softmax(-1).cumsum(-1)
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
        generator = torch.Generator().manual_seed(stable_seed(repr((seed, step, counter))))
        drawn.append(torch.rand(tokens, generator=generator, dtype=torch.float64))
    return torch.cat(drawn)
