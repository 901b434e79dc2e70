"""What one forward and backward pass leaves of the measured matrices: what went in, what came out, and its gradient.

Forward hooks are lost under torch.compile, which is why the model itself has taps; here nothing is ever compiled.

Shapes: B samples, T positions in a sample (1 for an MLP), I and O a matrix's inputs and outputs, C width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

Place = tuple[str, int | None]
"""(matrix, block); the block is None for a matrix outside blocks."""


@dataclass(frozen=True)
class Matrix:
    """A weight matrix that the assumptions are about, in every block or once.

    Attributes:
        name: as the result file calls it.
        parameter: its name in the network, with {block} where there is one in every block.
        part: (index, count) where `count` matrices are stacked along the rows, as Q, K and V are.
        feeds: the matrix that takes its output through a nonlinearity.
    """

    name: str
    parameter: str
    part: tuple[int, int] = (0, 1)
    feeds: str | None = None

    def places(self, depth: int) -> list[Place]:
        """Where it is, in a network of so many blocks."""
        return [(self.name, block) for block in range(depth)] if "{block}" in self.parameter else [(self.name, None)]

    def parameter_at(self, place: Place) -> str:
        """Name of the parameter that holds it."""
        return self.parameter.format(block=place[1])

    def cut(self, rows: torch.Tensor, dim: int) -> torch.Tensor:
        """Its own part of a tensor whose dimension `dim` runs over the stacked rows."""
        index, count = self.part
        return rows.chunk(count, dim)[index]


@dataclass
class Tape:
    """Recorded tensors, as the network had them.

    Attributes:
        inputs: what went into a matrix, (B, T, I).
        outputs: what came out, times the factor below, plus its bias, (B, T, O); after the backward pass with .grad.
        factors: the factor between a matrix's own product and the output that is recorded.
        streams: the residual stream behind every block, (B, T, C).
    """

    inputs: dict[Place, torch.Tensor] = field(default_factory=dict)
    outputs: dict[Place, torch.Tensor] = field(default_factory=dict)
    factors: dict[Place, float] = field(default_factory=dict)
    streams: list[torch.Tensor] = field(default_factory=list)

    def record(self, place: Place, x: torch.Tensor, y: torch.Tensor, factor: float = 1.0) -> None:
        """Keep a matrix's input and output, and let the backward pass keep the output's gradient."""
        if y.requires_grad:
            y.retain_grad()
        self.inputs[place], self.outputs[place], self.factors[place] = x.detach(), y, factor

    @contextmanager
    def listen(self, layers: dict[Place, nn.Module]) -> Iterator[None]:
        """Record linear layers while they are called."""
        handles = [
            layer.register_forward_hook(lambda _, x, y, place=place: self.record(place, x[0], y))
            for place, layer in layers.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def output(self, matrix: Matrix, place: Place) -> torch.Tensor:
        """What came out of this matrix alone, (B, T, O)."""
        return matrix.cut(self.outputs[place].detach(), -1)

    def delta(self, matrix: Matrix, place: Place) -> torch.Tensor:
        """Gradient of the batch's mean loss with respect to the matrix's own product, (B, T, O)."""
        gradient = self.outputs[place].grad
        assert gradient is not None, "the backward pass comes first"
        return matrix.cut(gradient, -1) * self.factors[place]
