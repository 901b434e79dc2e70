"""What is trained in a probe: the residual MLP that the condition is written for (no LayerNorm), and its task.

    h_0 = α_0 (W_0 x + b_0)        h_l = h_{l-1} + α · branch_l(h_{l-1})        y = α_{L+1} W_{L+1} h_L

A branch of k = 1 is W φ(h) + b; of k >= 2 it is W_k φ(… φ(W_1 h + b_1) …) + b_k, with φ = ReLU.

Shapes: B batch, D inputs, C width, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from mup_lightning.model.parameters import Declaration, collect, initialise, linear
from mup_lightning.spectral.recipe import Multipliers
from mup_lightning.spectral.roles import Role

TEACHER_UNITS = 32


class Branch(nn.Module):
    """One residual branch: h (B, C) -> (B, C), without the sum."""

    def __init__(self, width: int, branch_depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(branch_depth))

    def declarations(self) -> dict[str, Declaration]:
        """See `parameters.Declares`."""
        result: dict[str, Declaration] = {}
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, nn.Linear)
            result |= linear(layer, f"layers.{number}")
        return result

    def forward(self, h_BC: torch.Tensor) -> torch.Tensor:
        """At k = 1 the nonlinearity comes first: a ReLU after the last matrix would add up over depth."""
        if len(self.layers) == 1:
            return self.layers[0](F.relu(h_BC))
        for number, layer in enumerate(self.layers):
            h_BC = layer(F.relu(h_BC) if number else h_BC)
        return h_BC


class ResidualMLP(nn.Module):
    """x (B, D) -> logits (B, K).

    Args:
        width: C.
        depth: L, the number of branches.
        branch_depth: k.
        inputs: D.
        classes: K.
        multipliers: α of the input, of every branch and of the output.
        init_std: standard deviation of the matrices' entries by role; vectors start at 0.
        seed: seed of the weights.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        *,
        branch_depth: int,
        inputs: int,
        classes: int,
        multipliers: Multipliers,
        init_std: dict[Role, float],
        seed: int,
    ) -> None:
        super().__init__()
        self.multipliers = multipliers
        self.input = nn.Parameter(torch.empty(inputs, width))
        self.input_bias = nn.Parameter(torch.empty(width))
        self.branches = nn.ModuleList(Branch(width, branch_depth) for _ in range(depth))
        self.output = nn.Linear(width, classes, bias=False)
        self.infos = collect(self)
        for name, parameter in self.named_parameters():
            initialise(parameter, self.infos[name], init_std[self.infos[name].role], seed)

    def declarations(self) -> dict[str, Declaration]:
        """See `parameters.Declares`. The input matrix is stored (n_in, n_out), as embeddings are."""
        return {
            "input": Declaration(Role.INPUT),
            "input_bias": Declaration(Role.INPUT_BIAS, constant=0.0),
            "output.weight": Declaration(Role.OUTPUT),
        }

    def forward(self, x_BD: torch.Tensor) -> torch.Tensor:
        """Compute the logits; see the module's text."""
        h_BC = self.multipliers.input * (x_BD @ self.input + self.input_bias)
        for branch in self.branches:
            h_BC = h_BC + self.multipliers.residual * branch(h_BC)
        return self.multipliers.output * self.output(h_BC)


def batches(seed: int, batch: int, inputs: int, classes: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless fresh batches of one task: the class that a small random network, the teacher, gives a Gaussian sample.

    The same seed gives the same batches, whatever network learns them.

    Args:
        seed: seed of the teacher and of the samples.
        batch: B.
        inputs: D.
        classes: K.

    Yields:
        x (B, D) with entries of size 1, and labels (B,) int64.
    """
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(inputs, TEACHER_UNITS, generator=generator) / inputs**0.5
    second = torch.randn(TEACHER_UNITS, classes, generator=generator) / TEACHER_UNITS**0.5
    while True:
        x_BD = torch.randn(batch, inputs, generator=generator)
        yield x_BD, (torch.tanh(x_BD @ first) @ second).argmax(-1)
