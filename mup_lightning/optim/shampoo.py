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

import math

import torch

from mup_lightning.errors import UserError
from mup_lightning.optim.rule import Group, Item, Rule, State, split_blocks
from mup_lightning.typed import NonNegativeFloat, PositiveInt, UnitInterval

SIDES = ("left", "right")

USUAL = 40
"""Powers of two around 1 between which squares of gradients, and of what they become later, are in float32's range."""


class Shampoo(Rule):
    """State of a parameter of k blocks of (r, s).

    `step` (steps done), `momentum` of its shape, `left` and `left_root` (k, r, r), `right` and `right_root` (k, s, s);
    `exponent` where `in_units` says so.

    Attributes:
        beta1: decay of the gradient's moving average.
        beta2: decay of the preconditioners' moving averages.
        precondition_every: steps from one inverse root to the next.
        max_dimension: sides longer than this are not preconditioned.
        correct_bias: of the gradient's average, as Adam does; arXiv 2603.00541 (eq. 22) corrects L and R alone, so
            that its steps begin 1 - beta1 as large.
        eps: base value of ε, which the recipe scales; null: recipe.eps.
    """

    name = "shampoo"
    counted = True

    beta1: UnitInterval = 0.95
    beta2: UnitInterval = 0.95
    precondition_every: PositiveInt = 1
    max_dimension: PositiveInt = 20000
    correct_bias: bool = True
    eps: NonNegativeFloat | None = None

    def arithmetic(self, group: Group, rows: int, columns: int) -> dict[str, float]:
        """Covariances and the step; an eigendecomposition is about 9n³, and a root of it 2n³."""
        roots = 11.0 * (rows**3 + columns**3) / group["precondition_every"]
        return {"float32": 4.0 * rows * columns * (rows + columns), "decomposition": roots}

    def scratch(self, group: Group, items: list[Item], device: torch.device) -> int:
        """Four float64 squares of a block's longer side (eigh), and after them one direction."""
        return max(max(32 * max(item.block_shape) ** 2, 4 * item.parameter.numel()) for item in items)

    def start(self, group: Group, item: Item) -> None:
        """Averages of zero, and memory for the roots.

        Raises:
            UserError: both sides of a matrix are longer than max_dimension.
        """
        rows, columns = item.block_shape
        if min(rows, columns) > group["max_dimension"]:
            raise UserError(
                f"rules.shampoo.max_dimension is {group['max_dimension']}, below both sides of a {rows} x {columns} "
                f"matrix, which would leave it without preconditioner; expected at least {min(rows, columns)}"
            )
        super().start(group, item)
        start_sides(item, group["max_dimension"], "root")

    def step(self, group: Group, items: list[Item]) -> None:
        """One matrix after the other."""
        for item in items:
            state, (gradient, unit) = item.state, in_units(item)
            state["step"] += 1
            state["momentum"].lerp_(gradient, 1.0 - group["beta1"])
            accumulate(state, split_blocks(gradient, item.blocks), group["beta2"])
            if (state["step"] - 1) % group["precondition_every"] == 0:
                _refresh(state, 1.0 - group["beta2"] ** state["step"], group["eps"] / unit**2)
            _move(group, item)


def in_units(item: Item) -> tuple[torch.Tensor, float]:
    """A gradient over a power of two, and that power, in which all averages of this parameter are kept.

    It is 1 unless the first gradient is so small or large that its squares would vanish or overflow in float32; then
    the state's "exponent" says which.
    """
    if item.state["step"] == 0:
        _, exponent = math.frexp(float(torch.linalg.vector_norm(item.gradient, torch.inf)))
        if abs(exponent) > USUAL:
            item.state["exponent"] = max(-120, min(120, exponent))  # 2^±120 and its inverse are normal numbers
    unit = 2.0 ** item.state.get("exponent", 0)
    return (item.gradient if unit == 1.0 else item.gradient / unit), unit


def start_sides(item: Item, max_dimension: int, derived: str) -> None:
    """Covariances of zero of the sides that are not too long, and memory for what is derived from each."""
    for side, length in zip(SIDES, item.block_shape, strict=True):
        if length <= max_dimension:
            item.state[side] = item.parameter.new_zeros(item.blocks, length, length)
            item.state[f"{side}_{derived}"] = item.parameter.new_empty(item.blocks, length, length)


def accumulate(state: State, G_krs: torch.Tensor, beta: float) -> None:
    """L <- βL + (1 - β)GGᵀ and R <- βR + (1 - β)GᵀG, as far as they are kept."""
    for side, X in zip(SIDES, (G_krs, G_krs.mT), strict=True):
        if side in state:
            state[side].baddbmm_(X, X.mT, beta=beta, alpha=1.0 - beta)


def _move(group: Group, item: Item) -> None:
    """Step the weight. The last product goes straight into it, so that no more than one direction exists."""
    state, W_krs = item.state, split_blocks(item.parameter, item.blocks)
    A_krs = split_blocks(state["momentum"], item.blocks)
    step = -group["lr"] / (1.0 - group["beta1"] ** state["step"] if group["correct_bias"] else 1.0)
    keep = 1.0 - group["lr"] * group["weight_decay"]
    if "left" in state and "right" in state:
        A_krs = state["left_root"] @ A_krs
    if "right" in state:
        W_krs.baddbmm_(A_krs, state["right_root"], beta=keep, alpha=step)
    else:
        W_krs.baddbmm_(state["left_root"], A_krs, beta=keep, alpha=step)


def _refresh(state: State, weight: float, eps: float) -> None:
    """The root of (sums/weight + εI) of every block, one at a time, into the memory of the previous root."""
    sides = [side for side in SIDES if side in state]
    for side in sides:
        for sums, root in zip(state[side], state[side + "_root"], strict=True):
            root.copy_(_power(sums.to(torch.float64, copy=True).div_(weight), eps, -0.5 / len(sides)))


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
