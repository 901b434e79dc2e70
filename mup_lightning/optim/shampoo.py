"""Shampoo: the momentum between inverse roots of its rows' and columns' covariances (Gupta et al. 2018).

    M <- β₁M + (1 - β₁)G
    L <- β₂L + (1 - β₂)GGᵀ,  R <- β₂R + (1 - β₂)GᵀG
    A  = (L̂ + εI)^-1/4 · M̂ · (R̂ + εI)^-1/4        L̂, R̂, M̂ over 1 - βᵗ, as Adam corrects its averages
    W <- W - η(A + λW)

arXiv 1802.09568; the averages and their correction are those of Distributed Shampoo (Shi et al. 2023, arXiv
2309.06497), but nothing is grafted: another optimizer's norm would replace the one that the recipe counts on. At the
first step A = U Vᵀ, up to ε. It stays so where one side is too long to be preconditioned: the other then takes the
power -1/2.

Own code, because torch has no Shampoo.
"""

from __future__ import annotations

from typing import Any

import torch

from mup_lightning.config.optimizers import RuleOptions
from mup_lightning.errors import UserError
from mup_lightning.optim.matrices import part
from mup_lightning.optim.rule import Group, Item, State


class Shampoo:
    """State of a parameter of k blocks of (r, s).

    `step` (steps done), `momentum` of its shape, `left` and `left_root` (k, r, r), `right` and `right_root` (k, s, s).
    """

    name = "shampoo"
    whole_matrix = True

    def hyperparameters(self, options: RuleOptions) -> dict[str, Any]:
        """See `Rule`."""
        shampoo = options.shampoo
        return {
            "beta1": shampoo.beta1,
            "beta2": shampoo.beta2,
            "precondition_every": shampoo.precondition_every,
            "max_dimension": shampoo.max_dimension,
        }

    def cost(self, rows: int, columns: int) -> float:
        """See `Rule`."""
        return rows**3 + columns**3

    def update(self, group: Group, items: list[Item]) -> None:
        """See `Rule`.

        Raises:
            UserError: both sides of a matrix are longer than max_dimension.
        """
        for item in items:
            G_krs, state = part(item.gradient, item.blocks), item.state
            if not state:
                _start(state, item, G_krs, group["max_dimension"])
            state["step"] += 1
            state["momentum"].lerp_(item.gradient, 1.0 - group["beta1"])
            power = -0.25 if "left" in state and "right" in state else -0.5
            for side, X in (("left", G_krs), ("right", G_krs.mT)):
                if side not in state:
                    continue
                state[side].baddbmm_(X, X.mT, beta=group["beta2"], alpha=1.0 - group["beta2"])
                if (state["step"] - 1) % group["precondition_every"] == 0:
                    _refresh(state, side, 1.0 - group["beta2"] ** state["step"], group["eps"], power)
            _move(group, item)


def _move(group: Group, item: Item) -> None:
    """Step the weight. The last product goes straight into it, so that one direction at most exists beside it."""
    state, W_krs = item.state, part(item.parameter, item.blocks)
    A_krs = part(state["momentum"], item.blocks)
    step = -group["lr"] / (1.0 - group["beta1"] ** state["step"])
    keep = 1.0 - group["lr"] * group["weight_decay"]
    if "left" in state and "right" in state:
        A_krs = state["left_root"] @ A_krs
    if "right" in state:
        W_krs.baddbmm_(A_krs, state["right_root"], beta=keep, alpha=step)
    else:
        W_krs.baddbmm_(state["left_root"], A_krs, beta=keep, alpha=step)


def _start(state: State, item: Item, G_krs: torch.Tensor, max_dimension: int) -> None:
    blocks, rows, columns = G_krs.shape
    if min(rows, columns) > max_dimension:
        raise UserError(
            f"rules.shampoo.max_dimension is {max_dimension}, below both sides of a {rows} x {columns} matrix, which "
            f"would leave it without preconditioner; expected at least {min(rows, columns)}"
        )
    state["step"], state["momentum"] = 0, torch.zeros_like(item.parameter)
    for side, length in (("left", rows), ("right", columns)):
        if length <= max_dimension:
            state[side] = G_krs.new_zeros(blocks, length, length)


def _refresh(state: State, side: str, weight: float, eps: float, power: float) -> None:
    """The root of (sums/weight + εI) of every block, one at a time, into the memory of the root before."""
    if side + "_root" not in state:
        state[side + "_root"] = torch.empty_like(state[side])
    for sums, root in zip(state[side], state[side + "_root"], strict=True):
        root.copy_(_power(sums.to(torch.float64, copy=True).div_(weight), eps, power))


def _power(average_nn: torch.Tensor, eps: float, power: float) -> torch.Tensor:
    """(average + εI)^power of a symmetric, positive semidefinite matrix in float64.

    In float64, even of float32 averages: the eigenvalues are as far apart as the squares of G's singular values. Where
    those span a factor of 1000, U Vᵀ comes out 0.1 off by float32's eigenvectors, and 0.003 off by float64's. What
    rounding leaves negative counts as 0.
    """
    values, vectors = torch.linalg.eigh(average_nn)
    values = values.clamp_min_(0.0).add_(eps).clamp_min_(torch.finfo(torch.float32).tiny)
    vectors.mul_(values.pow_(power / 2))  # the power is their product with their own transpose
    return vectors @ vectors.mT
