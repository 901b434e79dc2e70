"""The four quantities, of plain tensors (arXiv 2603.00541, appendix G).

All are ratios of norms of things of one shape, so that ‖·‖_R may be taken as ‖·‖₂: the factor √(n_in/n_out) of a
matrix and 1/√n of a vector cancel.

Shapes: B samples, T positions in a sample, I and O a matrix's inputs and outputs, C any width.
"""

from __future__ import annotations

import torch

from mup_lightning.optim.norms import spectral_norms
from mup_lightning.optim.optimizer import RULES
from mup_lightning.optim.rule import Group, Item


def weight_ratios(before: list[torch.Tensor], after: list[torch.Tensor]) -> list[tuple[float, float]]:
    """‖W+ΔW‖/(‖W‖+‖ΔW‖) and ‖ΔW‖/‖W‖ of matrices before and after a step.

    The first is 1 where the step lies along W's leading singular vectors; it cannot be smaller than (1-s)/(1+s), with
    s the second.
    """
    # In float64: a step is small against its weight, and the Gram matrix squares its rounding.
    W = [weight.double() for weight in before]
    new = [weight.double() for weight in after]
    change = [second - first for first, second in zip(W, new, strict=True)]
    norms = spectral_norms([*W, *new, *change])
    n = len(W)
    sizes = zip(norms[:n], norms[n : 2 * n], norms[2 * n :], strict=True)
    return [(total / (size + step), step / size) for size, total, step in sizes]


def feature_ratio(before: torch.Tensor, after: torch.Tensor) -> tuple[float, float]:
    """‖h+Δh‖/(‖h‖+‖Δh‖) and ‖Δh‖/‖h‖ of (B, T, C) features before and after a step, each averaged over all vectors."""
    h, new = before.double(), after.double()
    size, total, step = (torch.linalg.vector_norm(x, dim=-1) for x in (h, new, new - h))
    return float((total / (size + step)).mean()), float((step / size).mean())


def activation_ratio(before: torch.Tensor, after: torch.Tensor) -> float:
    """‖φ(Wh)‖/‖Wh‖ of Wh and φ(Wh), (B, T, C), averaged over all vectors."""
    pre, post = (torch.linalg.vector_norm(x.double(), dim=-1) for x in (before, after))
    return float((post / pre).mean())


def own_gradients(inputs_BTI: torch.Tensor, deltas_BTO: torch.Tensor, *, transposed: bool = False) -> torch.Tensor:
    """G_(i), the gradient of sample i's own loss, for every sample of a batch.

    Exact: the batch's loss is the mean of its samples' and no sample sees another, so that the gradient of the batch
    is the sum of what each sample puts in, and a sample's own loss puts in B times as much.

    Args:
        inputs_BTI: h, what the matrix was given.
        deltas_BTO: gradient of the batch's mean loss with respect to W h.
        transposed: the matrix is stored (I, O).

    Returns:
        (B, O, I), or (B, I, O); their mean over B is the batch's gradient.
    """
    gradients_BOI = torch.einsum("bto,bti->boi", deltas_BTO, inputs_BTI) * len(inputs_BTI)
    return gradients_BOI.mT if transposed else gradients_BOI


def first_steps(
    group: Group, weight: torch.Tensor, gradients: list[torch.Tensor], *, transposed: bool = False
) -> list[torch.Tensor]:
    """ΔW that the group's rule makes of each gradient as its first step: with no momentum and no preconditioner yet."""
    items = [Item(weight.clone(), gradient.contiguous(), {}, 1, transposed) for gradient in gradients]
    RULES[group["rule"]].update(group, items)
    return [item.parameter - weight for item in items]


def alignment(
    group: Group,
    weight: torch.Tensor,
    inputs_BTI: torch.Tensor,
    deltas_BTO: torch.Tensor,
    *,
    transposed: bool = False,
) -> float:
    """‖ΔW h(x_i)‖ / ‖(1/B) ΔW_(i) h(x_i)‖, averaged over the batch: do the samples' updates add up, or cancel?

    ΔW_(i) is the update that the optimizer would make if sample i were the whole batch. Both it and ΔW are made as a
    first step: from the weights as they are, with the optimizer's state empty. So the theory takes updates (its raw
    direction has no momentum); and so ΔW_(i) knows of sample i alone. With the state of training kept, momentum,
    which is the same in all of them, would be most of every ΔW_(i), and the ratio near B whatever the samples do.

    SGD: ΔW is the mean of all ΔW_(i); the ratio is B where all samples agree, and 1 where only sample i moves its own
    feature. An optimizer that normalises (a sign, U Vᵀ) makes each ΔW_(i) as large as ΔW, whatever the samples do, and
    the ratio is B where ΔW moves a feature as far as its own update would. The theory needs it to stay where it is
    while the depth grows. A sample's h is all its positions together, (T, I), and its norm that of all its numbers.

    Args:
        group: of the optimizer, with the rule and its hyper-parameters.
        weight: (O, I), or (I, O) where transposed.
        inputs_BTI: h, what the matrix was given.
        deltas_BTO: gradient of the batch's mean loss with respect to W h.
        transposed: see above.

    Returns:
        The mean over the samples whose own update moves their feature at all (all of them, but where a ReLU is dead).
    """
    gradients = own_gradients(inputs_BTI, deltas_BTO, transposed=transposed)
    step, *own = first_steps(group, weight, [gradients.mean(0), *gradients], transposed=transposed)
    own_BOI = torch.stack(own)
    if transposed:
        step, own_BOI = step.mT, own_BOI.mT
    together_B = torch.linalg.vector_norm(inputs_BTI @ step.mT, dim=(1, 2))
    alone_B = torch.linalg.vector_norm(inputs_BTI @ own_BOI.mT, dim=(1, 2)) / len(inputs_BTI)
    moved_B = alone_B > 0
    return float((together_B[moved_B] / alone_B[moved_B]).mean())
