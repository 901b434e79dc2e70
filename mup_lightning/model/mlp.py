"""The MLP branch. Shapes: B batch, T positions, C width, F hidden units (F = mlp_ratio·C)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from mup_lightning.config.schema import ModelConfig
from mup_lightning.model.parameters import Declaration, linear


class MLP(nn.Module):
    """x (B, T, C) -> (B, T, C), without the residual sum."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = config.activation
        self.up = nn.Linear(config.width, config.mlp_ratio * config.width, bias=config.bias)
        self.down = nn.Linear(config.mlp_ratio * config.width, config.width, bias=config.bias)

    def declarations(self) -> dict[str, Declaration]:
        """See `parameters.Declares`."""
        return linear(self.up, "up") | linear(self.down, "down", closes_branch=True)

    def forward(self, x_BTC: torch.Tensor) -> torch.Tensor:
        """Up, nonlinearity, down."""
        h_BTF = self.up(x_BTC)
        h_BTF = F.gelu(h_BTF, approximate="tanh") if self.activation == "gelu" else F.relu(h_BTF)
        return self.down(h_BTF)
