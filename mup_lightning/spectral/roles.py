"""The roles of parameters that the spectral condition distinguishes, and what is recorded of each parameter.

A vector counts as a matrix with one input (n_out x 1), so one definition of norm serves all parameters
(arXiv 2603.00541, section 2).
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from mup_lightning.spectral.scale import ONE, M, N, Scale


class Role(StrEnum):
    """What a parameter is to the network; fixed when the model is built and never guessed later."""

    INPUT = "input"
    """Fixed number of inputs, n outputs: token and position embeddings."""
    HIDDEN = "hidden"
    """n inputs, n outputs, inside a residual branch: attention and MLP matrices."""
    OUTPUT = "output"
    """n inputs, fixed number of outputs: the language-model head."""
    INPUT_BIAS = "input_bias"
    """A vector on the main path, outside every branch: gain and bias of the final norm."""
    HIDDEN_BIAS = "hidden_bias"
    """A vector inside a residual branch: biases, and gain and bias of the branch's norm."""

    @property
    def in_branch(self) -> bool:
        """Whether it sits inside a residual branch, under the branch multiplier."""
        return self in (Role.HIDDEN, Role.HIDDEN_BIAS)

    @property
    def is_vector(self) -> bool:
        """Whether it is a bias or a gain: initialised to a constant, not drawn."""
        return self in (Role.INPUT_BIAS, Role.HIDDEN_BIAS)

    @property
    def n_out(self) -> Scale:
        """How the output side of a weight (n_out x n_in) scales."""
        return ONE if self is Role.OUTPUT else N

    @property
    def n_in(self) -> Scale:
        """How its input side scales; 1 for vectors."""
        return N if self in (Role.HIDDEN, Role.OUTPUT) else ONE


LABELS = ("embedding", "position", "attention", "mlp", "router", "head", "gain", "bias")
"""Kinds of parameters that may have base values of their own, as roles may: see `recipe.base`."""


Side = Literal["", "kv", "head", "experts"]
"""What an output side is that does not scale as its role's: keys and values of all heads, one head, or the experts."""


@dataclass(frozen=True)
class Declaration:
    """What a module declares about one of its own parameters.

    Attributes:
        role: the parameter's role in the spectral condition.
        label: one of `LABELS`, or empty.
        blocks: how many matrices of equal shape are stacked along dim 0 (3 for a fused QKV): whole-matrix
            optimizers treat each on its own.
        constant: initial value of a vector; None for matrices, which are drawn.
        closes_branch: the last matrix of a residual branch (GPT-2's extra init factor applies to it).
        side: what its output side is where that is not its role's.
        heads: how many attention heads' matrices are stacked along dim 0; 0 where none are.
        routed: the matrices of experts, or the rows of their router, each of which is given its share of the tokens.
    """

    role: Role
    label: str = ""
    blocks: int = 1
    constant: float | None = None
    closes_branch: bool = False
    side: Side = ""
    heads: int = 0
    routed: bool = False

    @property
    def n_out(self) -> Scale:
        """How its output side scales."""
        return ONE if self.side == "experts" else M if self.side else self.role.n_out

    @property
    def transposed(self) -> bool:
        """Whether it is stored as (n_in, n_out): the embeddings, whose rows are looked up rather than multiplied."""
        return self.role is Role.INPUT


@dataclass(frozen=True, kw_only=True)
class ParameterInfo(Declaration):
    """Everything known about one parameter, passed whole from the model to its checkpoints.

    `shape` is the true one, before any wrapper flattens or shards it.
    """

    name: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def block_shape(self) -> tuple[int, int]:
        """(rows, columns) of one of the matrices stacked in it; a vector is one column."""
        rows, columns = self.shape if len(self.shape) == 2 else (self.shape[0], 1)
        return rows // self.blocks, columns
