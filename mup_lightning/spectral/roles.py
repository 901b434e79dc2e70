"""The roles of parameters that the spectral condition distinguishes (arXiv 2603.00541, section 2).

A vector counts as a matrix with one input (n_out x 1), so one definition of norm serves all parameters.
"""

from dataclasses import dataclass
from enum import StrEnum

from mup_lightning.spectral.scale import ONE, N, Scale


class Role(StrEnum):
    """What a parameter is to the network; fixed when the model is built and never guessed later."""

    INPUT = "input"
    """Fixed number of inputs, n outputs: token and position embeddings."""
    HIDDEN = "hidden"
    """n inputs, n outputs, inside a residual branch: attention and MLP matrices."""
    OUTPUT = "output"
    """n inputs, fixed number of outputs: the language-model head."""
    INPUT_BIAS = "input_bias"
    """A vector on the main path, outside every branch: the final LayerNorm's gain and bias."""
    HIDDEN_BIAS = "hidden_bias"
    """A vector inside a residual branch: biases, and the branch's LayerNorm gain and bias."""

    @property
    def in_branch(self) -> bool:
        """Whether it sits inside a residual branch, under the branch multiplier."""
        return self in (Role.HIDDEN, Role.HIDDEN_BIAS)

    @property
    def is_vector(self) -> bool:
        """Whether it is a bias or a gain: initialised to a constant, not drawn."""
        return self in (Role.INPUT_BIAS, Role.HIDDEN_BIAS)


@dataclass(frozen=True)
class Shape:
    """How the two sides of a weight (n_out x n_in) scale."""

    n_out: Scale
    n_in: Scale


SHAPES: dict[Role, Shape] = {
    Role.INPUT: Shape(n_out=N, n_in=ONE),
    Role.HIDDEN: Shape(n_out=N, n_in=N),
    Role.OUTPUT: Shape(n_out=ONE, n_in=N),
    Role.INPUT_BIAS: Shape(n_out=N, n_in=ONE),
    Role.HIDDEN_BIAS: Shape(n_out=N, n_in=ONE),
}
