"""SOAP: Adam in the eigenbasis of Shampoo's preconditioners (Vyas et al. 2024, arXiv 2409.11321, algorithm 3).

    G' = Q_Lᵀ G Q_R,  M <- β₁M + (1 - β₁)G,  M' = Q_Lᵀ M Q_R,  V <- β₂V + (1 - β₂)G'²
    A  = c_t · Q_L [M' / (√V + ε)] Q_Rᵀ              c_t = √(1 - β₂ᵗ) / (1 - β₁ᵗ)
    W <- W - η(A + λW)
    L <- β₂L + (1 - β₂)GGᵀ,  R <- β₂R + (1 - β₂)GᵀG;  every f-th step Q_L, Q_R <- QR(L Q_L), QR(R Q_R)

The first step only fills L and R and takes their eigenvectors, as the authors do: in the basis of its own gradient
G' is diagonal, and Adam would make ±1 of the rounding errors around it. c_t, and ε next to the uncorrected √V, are the
authors' too. A side longer than max_dimension keeps its own basis.

Own code, because torch has no SOAP.
"""

import torch

from mup_lightning.optim.rule import Group, Item, Rule, State, move, split_blocks
from mup_lightning.optim.shampoo import SIDES, accumulate, in_units, start_sides
from mup_lightning.typed import PositiveFloat, PositiveInt, UnitInterval


class SOAP(Rule):
    """State of a parameter of k blocks of (r, s).

    `step` (steps done), `exp_avg` of its shape, `exp_avg_sq` of its shape but in the eigenbasis, `left` and
    `left_basis` (k, r, r), `right` and `right_basis` (k, s, s); `exponent` where `in_units` says so.

    Attributes:
        beta1: decay of the gradient's moving average.
        beta2: decay of the squared gradient's and the preconditioners' moving averages.
        eps: base value of Adam's ε, in the eigenbasis; the recipe scales it.
        precondition_every: steps from one refresh of the eigenbasis to the next.
        max_dimension: sides longer than this keep their own basis.
    """

    name = "soap"
    like_parameter = ("exp_avg", "exp_avg_sq")
    counted = True

    beta1: UnitInterval = 0.95
    beta2: UnitInterval = 0.95
    eps: PositiveFloat = 1e-8
    precondition_every: PositiveInt = 10
    max_dimension: PositiveInt = 10000

    def arithmetic(self, group: Group, rows: int, columns: int) -> dict[str, float]:
        """Covariances and three rotations; a refresh is a product, 2n³, and the two halves of QR, 8n³/3."""
        cubes = (rows**3 + columns**3) / group["precondition_every"]
        return {"float32": 8.0 * rows * columns * (rows + columns) + 2.0 * cubes, "decomposition": 8 / 3 * cubes}

    def scratch(self, group: Group, items: list[Item], device: torch.device) -> int:
        """Three float32 squares of the longer side (QR), and before them as many rotated matrices."""
        return max(12 * max(item.blocks * max(item.block_shape) ** 2, item.parameter.numel()) for item in items)

    def start(self, group: Group, item: Item) -> None:
        """Averages of zero, and memory for the bases."""
        super().start(group, item)
        start_sides(item, group["max_dimension"], "basis")

    def step(self, group: Group, items: list[Item]) -> None:
        """The first step of a matrix changes state alone."""
        for item in items:
            state, (gradient, unit) = item.state, in_units(item)
            G_krs = split_blocks(gradient, item.blocks)
            t = state["step"]
            state["step"] = t + 1
            if t == 0:
                accumulate(state, G_krs, group["beta2"])
                for side in [side for side in SIDES if side in state]:
                    wide = state[side].to(torch.promote_types(state[side].dtype, torch.float32))
                    state[side + "_basis"].copy_(torch.linalg.eigh(wide).eigenvectors.flip(-1))  # the largest first
                continue
            state["exp_avg"].lerp_(gradient, 1.0 - group["beta1"])
            _move(group, item, G_krs, group["eps"] / unit)
            accumulate(state, G_krs, group["beta2"])
            if t % group["precondition_every"] == 0:
                _refresh(state, split_blocks(state["exp_avg_sq"], item.blocks))


def _move(group: Group, item: Item, G_krs: torch.Tensor, eps: float) -> None:
    """Step V and the weight."""
    state, t = item.state, item.state["step"] - 1
    V_krs, M_krs, W_krs = (
        split_blocks(tensor, item.blocks) for tensor in (state["exp_avg_sq"], state["exp_avg"], item.parameter)
    )
    rotated = _rotate(state, G_krs)
    V_krs.mul_(group["beta2"]).addcmul_(rotated, rotated, value=1.0 - group["beta2"])
    rotated = _rotate(state, M_krs) / V_krs.sqrt().add_(eps)
    correction = (1.0 - group["beta2"] ** t) ** 0.5 / (1.0 - group["beta1"] ** t)
    move(group, W_krs, _rotate(state, rotated, back=True), correction)


def _rotate(state: State, X_krs: torch.Tensor, *, back: bool = False) -> torch.Tensor:
    """Q_Lᵀ X Q_R, or back: Q_L X Q_Rᵀ, with the bases of sides that are not too long."""
    if "left" in state:
        X_krs = (state["left_basis"] if back else state["left_basis"].mT) @ X_krs
    if "right" in state:
        X_krs = X_krs @ (state["right_basis"].mT if back else state["right_basis"])
    return X_krs


def _refresh(state: State, V_krs: torch.Tensor) -> None:
    """One power iteration on each basis, largest eigenvalue first; V's entries follow their vectors."""
    for side, dim in zip(SIDES, (1, 2), strict=True):
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
