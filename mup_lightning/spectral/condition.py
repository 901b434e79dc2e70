"""The spectral condition under width-depth scaling, solved for one weight at a time (arXiv 2603.00541, section 3).

The goal: every feature, and the change of every feature in one step, keeps RMS size Θ(1) as n and L grow, and each
weight contributes as much to that change as it can. For a residual branch of k matrices with multiplier α:

    input, output    α‖W‖_R = Θ(1)                        α‖ΔW‖_R = Θ(1)
    hidden, k = 1    α‖W‖_R = Θ(1/√L)                     α‖ΔW‖_R = Θ(1/L)
    hidden, k >= 2   α ∏‖W_i‖_R = Θ(1/L)                  α‖ΔW_i‖_R ∏_{m≠i}‖W_m‖_R = Θ(1/L) for every i

where ‖W‖_R = √(n_in/n_out)·‖W‖₂. At k = 1 the L random branches add up like a random walk, hence 1/√L at
initialisation; their updates point the same way, hence 1/L. At k >= 2 the second-order term ΔW₂ΔW₁ needs the
branch itself to be 1/L. The initialisation convention of width-μP (variance 1 for input and output, 1/n for hidden)
is assumed; multipliers and update sizes follow.

A gain that all heads share, and keys and values that several share, have m < n outputs: repeating them for the heads
leaves ‖·‖_R as it is, so the condition is that of any vector or matrix of the branch, with √(n/m) between ‖·‖_R and
‖·‖₂. Each row of a router of E experts is a matrix of one output, since a token hears the rows of its k experts alone.
k is fixed and E grows: an expert, or a row of the router, is given k/E of the tokens, so that a step of it changes the
loss by 1/E of what the block's does, ⟨ΔW, G⟩ = Θ(1/(LE)). Gradients, ε and the mean square of one token's gradient fall
as 1/E. docs/method/recipe.md derives both, and says where the literature takes other limits.
"""

from dataclasses import dataclass
from functools import cache

from mup_lightning.spectral.roles import Role
from mup_lightning.spectral.scale import HALF, ONE, E, L, N, S, Scale, largest

# Vectors start at a constant (0 or 1), as large as one drawn with this variance.
INIT_VARIANCE: dict[Role, Scale] = dict.fromkeys(Role, ONE) | {Role.HIDDEN: ONE / N}


@dataclass(frozen=True)
class Weight:
    """The condition solved for one weight: everything that an optimizer family needs to know.

    Attributes:
        n_out: scale of the output side.
        init_var: variance of its entries at initialisation (a convention, not a result).
        norm: ‖W‖_R at initialisation.
        multiplier: α of its branch or layer.
        update: the ‖ΔW‖_R that one step must have.
        loss_change: ⟨ΔW, G⟩, its share of the first-order change of the loss in one step.
        noise: what the batch makes of the gradient's size; see `horizon`.
        routed: one of E experts, or of the router's rows.
    """

    role: Role
    n_out: Scale
    init_var: Scale
    norm: Scale
    multiplier: Scale
    update: Scale
    loss_change: Scale
    noise: Scale = ONE
    routed: bool = False

    @property
    def side_factor(self) -> Scale:
        """√(n_in/n_out), by which ‖·‖_R differs from ‖·‖₂."""
        return (self.role.n_in / self.n_out) ** HALF

    @property
    def larger_side(self) -> Scale:
        """Scale of max(n_in, n_out). Outside blocks one side is fixed, and may be the longer one."""
        return N if self.role is Role.HIDDEN else S

    @property
    def gradient(self) -> Scale:
        """‖G‖₂ of the raw gradient G.

        G is low-rank (its rank is bounded by the batch), so ⟨ΔW, G⟩ = Θ(‖ΔW‖₂‖G‖₂) for an aligned update.
        """
        return self.loss_change * self.side_factor / self.update * self.noise

    @property
    def gradient_entry(self) -> Scale:
        """RMS of the raw gradient's entries, ‖G‖_F/√(n_in·n_out), with ‖G‖_F = Θ(‖G‖₂) because G is low-rank."""
        return self.gradient / (self.role.n_in * self.n_out) ** HALF

    @property
    def hessian_entry(self) -> Scale:
        """An entry of the Hessian's diagonal, which goes as the squared gradient of one token: no batch averages it.

        Where it is routed, it is that of the tokens that it is given, times their share of all.
        """
        return (self.gradient_entry / self.noise) ** 2 * (E if self.routed else ONE)

    @property
    def role_gradient(self) -> Scale:
        """‖G‖_F of all gradients of this role together: those of L branches, and of E experts, add up as squares."""
        return self.gradient * (L**HALF if self.role.in_branch else ONE) * (E**HALF if self.routed else ONE)


@cache
def solve(
    role: Role, branch_depth: int, n_out: Scale | None = None, noise: Scale = ONE, routed: bool = False
) -> Weight:
    """Solve the condition for one weight, at k = `branch_depth` matrices in one residual branch (all k >= 2 agree).

    `n_out` is the scale of its output side; None: its role's. `noise` and `routed` are those of `Weight`.
    """
    if branch_depth < 1:
        raise ValueError(f"branch_depth is the number of matrices in a residual branch, at least 1; not {branch_depth}")
    hidden = _matrix_norm(INIT_VARIANCE[Role.HIDDEN], N, N)
    # What α·∏‖W‖_R over the whole branch must be at initialisation, and what one update may add to the stream.
    branch_size, branch_change = (ONE / L**HALF if branch_depth == 1 else ONE / L), ONE / L
    branch_multiplier = branch_size / hidden**branch_depth

    n_in, n_out = role.n_in, n_out or role.n_out
    # A matrix of another side than its role's starts with its role's ‖W‖_R.
    init_var = INIT_VARIANCE[role] if role.is_vector else INIT_VARIANCE[role] * n_out / role.n_out
    norm = _matrix_norm(init_var, n_in, n_out)
    multiplier, loss_change = (branch_multiplier, branch_change) if role.in_branch else (ONE / norm, ONE)
    update = loss_change / multiplier
    # A bias adds to the stream through the matrices that follow it; the last one of the branch through none. Both give
    # the same scale, because the convention makes ‖W‖_R = Θ(1) for hidden matrices.
    if role is Role.HIDDEN:
        update = update / hidden ** (branch_depth - 1)
    return Weight(role, n_out, init_var, norm, multiplier, update, loss_change / (E if routed else ONE), noise, routed)


def _matrix_norm(variance: Scale, n_in: Scale, n_out: Scale) -> Scale:
    """‖W‖_R of a Gaussian matrix: ‖W‖₂ = Θ(√var·(√n_in + √n_out))."""
    return (n_in / n_out) ** HALF * variance**HALF * largest(n_in, n_out) ** HALF
