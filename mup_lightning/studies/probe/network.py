"""What is trained in a probe: the residual MLP that the condition is written for (no LayerNorm), and its task.

    h_0 = α_0 (W_0 x + b_0)        h_l = h_{l-1} + α · branch_l(h_{l-1})        y = α_{L+1} W_{L+1} h_L

A branch of k = 1 is W φ(h) + b; of k >= 2 it is W_k φ(… φ(W_1 h + b_1) …) + b_k, with φ = ReLU.

Shapes: B batch, D inputs, C width, K classes.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from mup_lightning.model.parameters import Declaration, collect, initialise, linear
from mup_lightning.spectral.recipe import Recipe, RecipeConfig, derive
from mup_lightning.spectral.roles import Role
from mup_lightning.studies.probe import CLASSES, INPUTS

TEACHER_UNITS = 32


class Branch(nn.Module):
    """One residual branch: h (B, C) -> (B, C), without the sum."""

    def __init__(self, width: int, branch_depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(branch_depth))

    def declarations(self) -> dict[str, Declaration]:
        """See `parameters.collect`."""
        result: dict[str, Declaration] = {}
        for number, layer in enumerate(self.layers):
            result |= linear(layer, f"layers.{number}")  # type: ignore[arg-type]
        return result

    def forward(self, h_BC: torch.Tensor) -> torch.Tensor:
        """At k = 1 the nonlinearity comes first: a ReLU after the last matrix would add up over depth."""
        for number, layer in enumerate(self.layers):
            h_BC = layer(F.relu(h_BC) if number or len(self.layers) == 1 else h_BC)
        return h_BC


class ResidualMLP(nn.Module):
    """x (B, D) -> logits (B, K), with multipliers and inits of a recipe; vectors start at 0."""

    def __init__(self, width: int, depth: int, branch_depth: int, recipe: Recipe, seed: int, inputs: int) -> None:
        super().__init__()
        self.recipe, self.multipliers = recipe, recipe.multipliers
        self.input = nn.Parameter(torch.empty(inputs, width))
        self.input_bias = nn.Parameter(torch.empty(width))
        self.branches = nn.ModuleList(Branch(width, branch_depth) for _ in range(depth))
        self.output = nn.Linear(width, CLASSES, bias=False)
        self.infos = collect(self)
        for name, parameter in self.named_parameters():
            initialise(parameter, self.infos[name], recipe.values[self.infos[name].role].init_std, seed)

    def declarations(self) -> dict[str, Declaration]:
        """See `parameters.collect`. The input matrix is stored (n_in, n_out), as embeddings are."""
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


def build_mlp(base: RecipeConfig, width: int, depth: int, seed: int, inputs: int = INPUTS) -> ResidualMLP:
    """A network on the condition: at the base layers keep the size of their input, branches are small."""
    std = base.base_width**-0.5
    base = replace(
        base,
        init_std=std,
        input_multiplier=1 / (std * inputs**0.5),
        residual_multiplier=1 / base.base_depth if base.branch_depth > 1 else base.base_depth**-0.5,
        # Small logits at the start: a random head's shrink as 1/√n, and narrow networks would begin at larger losses.
        output_multiplier=0.25,
    )
    return ResidualMLP(width, depth, base.branch_depth, derive(base, width, depth), seed, inputs)


def batches(seed: int, batch: int, inputs: int = INPUTS) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless fresh batches of one task, x (B, D) and labels (B,): the class that a small random network gives x.

    A pure function of the seed, whatever network learns them.
    """
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(inputs, TEACHER_UNITS, generator=generator) / inputs**0.5
    second = torch.randn(TEACHER_UNITS, CLASSES, generator=generator) / TEACHER_UNITS**0.5
    while True:
        x_BD = torch.randn(batch, inputs, generator=generator)
        yield x_BD, (torch.tanh(x_BD @ first) @ second).argmax(-1)
