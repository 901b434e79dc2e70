"""Optimizer families: all that the recipe needs to know about an optimizer (arXiv 2603.00541, sections 4 and 5).

A new optimizer has one line here, and its update rule in `mup_lightning/optim/NAME.py`.

One step is ΔW = -η(A + λW) with A the optimizer's raw direction. A family says how large A is, ‖A‖_R, at the first
step and without momentum, and how the options of its rule scale that are added to something or compared with it (a
stabiliser ε scales as what it is added to). Learning rate and weight decay follow in recipe.py.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from mup_lightning.spectral.condition import Weight
from mup_lightning.spectral.scale import HALF, ONE, Scale


@dataclass(frozen=True, eq=False)
class Family:
    """An optimizer, as far as scaling is concerned.

    Attributes:
        name: what `recipe.optimizer` calls it.
        direction: ‖A‖_R of the raw direction for a weight.
        scaled: option of the rule, such as eps -> how its base value scales.
        whole_matrix: acts on a matrix as a whole, so that vectors and, by custom, embeddings and head go to AdamW.
        aux_lr_factor: base learning rate of all but the matrices inside blocks, over theirs, as the paper sets it.
        averages: options of the rule that are decays of averages, and do not set the size of its steps: `horizon`.
        measured: ‖A‖_R as `mup-lightning probe` measures it, if not as published (docs/results/probe.md).
        base_eps: ε at the base shape for the probe (docs/results/probe.md: Shampoo needs more).
        least_eps: smallest base ε with any effect: below it, float32 rounding decides.
    """

    name: str
    direction: Callable[[Weight], Scale]
    scaled: Mapping[str, Callable[[Weight], Scale]] = field(default_factory=dict)
    whole_matrix: bool = False
    aux_lr_factor: float = 1.0
    averages: tuple[str, ...] = ()
    measured: Callable[[Weight], Scale] | None = None
    base_eps: float = 1e-16
    least_eps: float = 0.0


def _sign(w: Weight) -> Scale:
    """sign(G): G is low-rank, so its sign pattern is too: ‖A‖₂ = √(n_in·n_out), hence ‖A‖_R = n_in."""
    return w.role.n_in


def _orthogonal(w: Weight) -> Scale:
    """U Vᵀ: every singular value is 1."""
    return w.side_factor


_ENTRY: Mapping[str, Callable[[Weight], Scale]] = {"eps": lambda w: w.gradient_entry}
"""ε is added to a running size of the gradient's entries."""

_BETAS = ("beta1", "beta2")


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("sgd", lambda w: w.side_factor * w.gradient),  # G itself, whose size follows from the loss
        Family("adamw", _sign, _ENTRY, averages=_BETAS),
        # Adan's beta2 is also a weight of the gradient's change, in what is averaged and in what it is divided by.
        Family("adan", _sign, _ENTRY, averages=("beta1", "beta3")),
        Family("lion", _sign),
        # The momentum goes as the gradient; ρh, to which it is compared, must go as that too. h alone does not know B.
        Family("sophia", _sign, {"rho": lambda w: w.gradient_entry / w.hessian_entry, **_ENTRY}, averages=("beta2",)),
        Family("muon", _orthogonal, whole_matrix=True, aux_lr_factor=0.1),
        Family("muon_kimi", lambda w: _orthogonal(w) * w.larger_side**HALF, whole_matrix=True),
        # Measured: at ε = 1e-12 its steps are nearly what the theory says, at 1e-16 they grow with depth and width.
        Family(
            "shampoo", _orthogonal, {"eps": lambda w: w.gradient**2}, True, 2.0, _BETAS, base_eps=1e-8, least_eps=1e-12
        ),
        # In an eigenbasis that is a step old the gradient is dense, and Adam makes all its entries equally large.
        Family("soap", _orthogonal, _ENTRY, whole_matrix=True, averages=_BETAS, measured=_sign),
        # The sphere holds ‖W‖_R where the condition wants it, which for the output matrix grows with n. The paper's has
        # the same radius for all roles, so that α‖W‖_R of the output would fall as 1/n.
        Family("sso", lambda w: ONE, {"sphere": lambda w: w.norm}, whole_matrix=True),
    )
}
