"""One Transformer block: two residual branches, each under the same multiplier."""

from __future__ import annotations

import torch
from torch import nn

from mup_lightning.config.schema import ModelConfig
from mup_lightning.model import taps
from mup_lightning.model.attention import Attention
from mup_lightning.model.mlp import MLP
from mup_lightning.model.parameters import Declaration, layer_norm
from mup_lightning.spectral.roles import Role


def make_norm(config: ModelConfig) -> nn.Module:
    """A LayerNorm over the width, or the identity where the model has none."""
    return nn.LayerNorm(config.width, bias=config.bias) if config.layer_norm else nn.Identity()


class Block(nn.Module):
    """x (B, T, C) -> x + α·attention(norm(x)), then the same with the MLP.

    Args:
        config: shape and switches.
        layer: index of the block, for the taps.
        multiplier: α, the residual-branch multiplier.
    """

    def __init__(self, config: ModelConfig, layer: int, multiplier: float) -> None:
        super().__init__()
        self.layer, self.multiplier = layer, multiplier
        self.attention_norm = make_norm(config)
        self.attention = Attention(config)
        self.mlp_norm = make_norm(config)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(config.dropout)

    def declarations(self) -> dict[str, Declaration]:
        """See `parameters.Declares`. A branch's LayerNorm sits inside it, so it scales like a bias of the branch."""
        return layer_norm(self.attention_norm, "attention_norm", Role.HIDDEN_BIAS) | layer_norm(
            self.mlp_norm, "mlp_norm", Role.HIDDEN_BIAS
        )

    def forward(self, x_BTC: torch.Tensor, recorder: taps.Recorder | None = None) -> torch.Tensor:
        """Both branches in turn."""
        branch_BTC = self.attention(self.attention_norm(x_BTC))
        if recorder is not None:
            recorder.feature(taps.ATTENTION, self.layer, branch_BTC)
            recorder.feature(taps.ATTENTION_SCALED, self.layer, branch_BTC, self.multiplier)
        x_BTC = torch.add(x_BTC, self.dropout(branch_BTC), alpha=self.multiplier)

        branch_BTC = self.mlp(self.mlp_norm(x_BTC))
        if recorder is not None:
            recorder.feature(taps.MLP, self.layer, branch_BTC)
            recorder.feature(taps.MLP_SCALED, self.layer, branch_BTC, self.multiplier)
        x_BTC = torch.add(x_BTC, self.dropout(branch_BTC), alpha=self.multiplier)
        if recorder is not None:
            recorder.feature(taps.RESIDUAL, self.layer, x_BTC)
        return x_BTC
