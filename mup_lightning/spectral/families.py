"""Optimizer families: all that the recipe needs to know about an optimizer (arXiv 2603.00541, sections 4 and 5).

A new optimizer has one line here, and its update rule in `mup_lightning/optim/NAME.py`.

One step is ΔW = -η(A + λW) with A the optimizer's raw direction. A family says how large A is, ‖A‖_R, at the first
step and without momentum, and what its stabiliser ε is added to. Learning rate and weight decay follow in recipe.py.
"""

from collections.abc import Callable
from dataclasses import dataclass

from mup_lightning.spectral.condition import Weight
from mup_lightning.spectral.scale import HALF, ONE, Scale


@dataclass(frozen=True)
class Family:
    """An optimizer, as far as scaling is concerned.

    Attributes:
        name: what `recipe.optimizer` calls it.
        direction: ‖A‖_R of the raw direction for a weight.
        epsilon: the scale of what the stabiliser ε is added to; None where the optimizer has none that matters.
        whole_matrix: acts on a matrix as a whole, so that vectors and, by custom, embeddings and head go to AdamW.
        aux_lr_factor: base learning rate of all but the matrices inside blocks, over theirs, as the paper sets it.
        measured: ‖A‖_R as `mup-lightning probe` measures it, if not as published (docs/results/probe.md).
        base_eps: ε at the base shape, where `epsilon` says how it scales (docs/results/probe.md: Shampoo needs more).
        least_eps: smallest base ε with any effect: below it, float32 rounding decides.
    """

    name: str
    direction: Callable[[Weight], Scale]
    epsilon: Callable[[Weight], Scale] | None = None
    whole_matrix: bool = False
    aux_lr_factor: float = 1.0
    measured: Callable[[Weight], Scale] | None = None
    base_eps: float = 1e-16
    least_eps: float = 0.0


def _sign(w: Weight) -> Scale:
    """sign(G): G is low-rank, so its sign pattern is too: ‖A‖₂ = √(n_in·n_out), hence ‖A‖_R = n_in."""
    return w.n_in


def _orthogonal(w: Weight) -> Scale:
    """U Vᵀ: every singular value is 1."""
    return (w.n_in / w.n_out) ** HALF


def _gradient(w: Weight) -> Scale:
    """G itself, whose size follows from the loss."""
    return (w.n_in / w.n_out) ** HALF * w.gradient


def _gradient_entry(w: Weight) -> Scale:
    return w.gradient_entry


def _gradient_squared(w: Weight) -> Scale:
    return w.gradient**2


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("sgd", _gradient),
        Family("adamw", _sign, epsilon=_gradient_entry),
        Family("adan", _sign, epsilon=_gradient_entry),
        Family("lion", _sign),
        Family("sophia", _sign),
        Family("muon", _orthogonal, whole_matrix=True, aux_lr_factor=0.1),
        Family("muon_kimi", lambda w: _orthogonal(w) * w.larger_side**HALF, whole_matrix=True),
        # Measured: at ε = 1e-12 its steps are nearly what the theory says, at 1e-16 they grow with depth and width.
        Family("shampoo", _orthogonal, _gradient_squared, True, 2.0, base_eps=1e-8, least_eps=1e-12),
        # In an eigenbasis that is a step old the gradient is dense, and Adam makes all its entries equally large.
        Family("soap", _orthogonal, whole_matrix=True, measured=_sign),
        Family("sso", lambda w: ONE, whole_matrix=True),
    )
}
