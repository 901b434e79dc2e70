"""SOAP: Adam in the eigenbasis of Shampoo's preconditioners (Vyas et al. 2024, arXiv 2409.11321, algorithm 3).

    G' = Q_Lᵀ G Q_R,  M <- β₁M + (1 - β₁)G,  M' = Q_Lᵀ M Q_R,  V <- β₂V + (1 - β₂)G'²
    A  = c_t · Q_L [M' / (√V + ε)] Q_Rᵀ              c_t = √(1 - β₂ᵗ) / (1 - β₁ᵗ)
    W <- W - η(A + λW)
    L <- β₂L + (1 - β₂)GGᵀ,  R <- β₂R + (1 - β₂)GᵀG;  every f-th step Q_L, Q_R <- QR(L Q_L), QR(R Q_R)

The first step only fills L and R and takes their eigenvectors, as the authors do it: in the basis of its own gradient
G' is diagonal, and Adam would make ±1 of the rounding errors beside it. c_t, and ε beside the uncorrected √V, are the
authors' too. A side longer than max_dimension keeps its own basis.

Own code, because torch has no SOAP.
"""

from __future__ import annotations

from typing import Any

import torch

from mup_lightning.config.optimizers import RuleOptions
from mup_lightning.optim.matrices import part
from mup_lightning.optim.rule import Group, Item, State

_SIDES = ("left", "right")


class SOAP:
    """State of a parameter of k blocks of (r, s).

    `step` (steps done), `exp_avg` of its shape, `exp_avg_sq` of its shape but in the eigenbasis, `left` and
    `left_basis` (k, r, r), `right` and `right_basis` (k, s, s).
    """

    name = "soap"
    whole_matrix = True

    def hyperparameters(self, options: RuleOptions) -> dict[str, Any]:
        """See `Rule`."""
        soap = options.soap
        return {
            "beta1": soap.beta1,
            "beta2": soap.beta2,
            "adam_eps": soap.eps,
            "precondition_every": soap.precondition_every,
            "max_dimension": soap.max_dimension,
        }

    def cost(self, rows: int, columns: int) -> float:
        """See `Rule`."""
        return rows**3 + columns**3

    def update(self, group: Group, items: list[Item]) -> None:
        """See `Rule`. The first step changes state alone."""
        for item in items:
            G_krs, state = part(item.gradient, item.blocks), item.state
            if not state:
                _start(state, item, G_krs, group)
                continue
            t = state["step"]
            state["step"] = t + 1
            state["exp_avg"].lerp_(item.gradient, 1.0 - group["beta1"])
            _move(group, item, t)
            _accumulate(state, G_krs, group["beta2"])
            if t % group["precondition_every"] == 0:
                _refresh(state, part(state["exp_avg_sq"], item.blocks))


def _move(group: Group, item: Item, t: int) -> None:
    """Step V and the weight. Two matrices of the weight's size exist beside it at most."""
    state = item.state
    V_krs, M_krs, G_krs, W_krs = (
        part(tensor, item.blocks) for tensor in (state["exp_avg_sq"], state["exp_avg"], item.gradient, item.parameter)
    )
    rotated, spare = _rotate(state, G_krs, *(torch.empty_like(G_krs) for _ in range(2)))
    V_krs.mul_(group["beta2"]).addcmul_(rotated, rotated, value=1.0 - group["beta2"])
    rotated, spare = _rotate(state, M_krs, rotated, spare)
    rotated.div_(torch.sqrt(V_krs, out=spare).add_(group["adam_eps"]))
    rotated, _ = _rotate(state, rotated, spare, rotated, back=True)
    correction = (1.0 - group["beta2"] ** t) ** 0.5 / (1.0 - group["beta1"] ** t)
    W_krs.mul_(1.0 - group["lr"] * group["weight_decay"]).add_(rotated, alpha=-group["lr"] * correction)


def _start(state: State, item: Item, G_krs: torch.Tensor, group: Group) -> None:
    state["step"] = 1
    state["exp_avg"], state["exp_avg_sq"] = (torch.zeros_like(item.parameter) for _ in range(2))
    for side, length in zip(_SIDES, G_krs.shape[1:], strict=True):
        if length <= group["max_dimension"]:
            state[side] = G_krs.new_zeros(item.blocks, length, length)
    _accumulate(state, G_krs, group["beta2"])
    for side in _SIDES:
        if side in state:
            wide = torch.promote_types(G_krs.dtype, torch.float32)
            state[side + "_basis"] = torch.linalg.eigh(state[side].to(wide)).eigenvectors.flip(-1).to(G_krs.dtype)


def _accumulate(state: State, G_krs: torch.Tensor, beta: float) -> None:
    for side, X in zip(_SIDES, (G_krs, G_krs.mT), strict=True):
        if side in state:
            state[side].baddbmm_(X, X.mT, beta=beta, alpha=1.0 - beta)


def _rotate(
    state: State, X_krs: torch.Tensor, first: torch.Tensor, second: torch.Tensor, *, back: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Q_Lᵀ X Q_R, or back: Q_L X Q_Rᵀ.

    Args:
        state: with the bases of sides that are not too long.
        X_krs: left unchanged, unless its memory is `second`.
        first: memory of X's size.
        second: likewise, which may be X's own.
        back: see above.

    Returns:
        The result, in one of the two memories, and the other one.
    """
    if "left" not in state and "right" not in state:
        return first.copy_(X_krs), second
    if "left" in state:
        basis = state["left_basis"]
        X_krs = torch.bmm(basis if back else basis.mT, X_krs, out=first)
        first, second = second, first
    if "right" in state:
        basis = state["right_basis"]
        X_krs = torch.bmm(X_krs, basis.mT if back else basis, out=first)
        first, second = second, first
    return second, first


def _refresh(state: State, V_krs: torch.Tensor) -> None:
    """One power iteration on each basis, largest eigenvalue first; V's entries follow their vectors."""
    for side, dim in zip(_SIDES, (1, 2), strict=True):
        if side not in state:
            continue
        basis = state[side + "_basis"]
        product = state[side] @ basis
        order = basis.mul_(product).sum(1).argsort(dim=-1, descending=True)  # (k, n), by Rayleigh quotients
        index = order.unsqueeze(3 - dim).expand_as(V_krs)
        V_krs.copy_(V_krs.gather(dim, index))
        torch.gather(product, 2, order.unsqueeze(1).expand_as(product), out=basis)
        del product
        # The two halves of linalg.qr, which would make R as well.
        wide = torch.promote_types(basis.dtype, torch.float32)
        basis.copy_(torch.linalg.householder_product(*torch.geqrf(basis.to(wide))))
