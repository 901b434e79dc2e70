"""One Transformer block and its two residual branches, each under the same multiplier.

Shapes: B batch, T positions, C width, H heads, D head dimension (C = H·D), F hidden units (F = mlp_ratio·C).
"""

import torch
import torch.nn.functional as F
from torch import nn

from mup_lightning.config.schema import ModelConfig
from mup_lightning.model import taps
from mup_lightning.model.parameters import Declaration, layer_norm, linear
from mup_lightning.spectral.recipe import Multipliers
from mup_lightning.spectral.roles import Role


def make_norm(config: ModelConfig) -> nn.Module:
    """A LayerNorm over the width, or the identity where the model has none."""
    return nn.LayerNorm(config.width, bias=config.bias) if config.layer_norm else nn.Identity()


class Attention(nn.Module):
    """x (B, T, C) -> (B, T, C), without the residual sum.

    `multiplier` is a factor on the attention logits, besides that of `config.attention_scale`.
    """

    def __init__(self, config: ModelConfig, multiplier: float) -> None:
        super().__init__()
        self.heads, self.head_dim = config.width // config.head_dim, config.head_dim
        self.scale = self.head_dim ** (-1.0 if config.attention_scale == "1/d" else -0.5) * multiplier
        self.qk_norm, self.dropout = config.qk_norm, config.dropout
        # Q, K and V in one product; they are three matrices stacked along the rows, and declared as such.
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=config.bias)
        self.out = nn.Linear(config.width, config.width, bias=config.bias)

    def declarations(self) -> dict[str, Declaration]:
        """See `parameters.collect`."""
        return linear(self.qkv, "qkv", "attention", blocks=3) | linear(self.out, "out", "attention", closes_branch=True)

    def forward(self, x_BTC: torch.Tensor) -> torch.Tensor:
        """Causal self-attention."""
        B, T, C = x_BTC.shape
        qkv_BTHD = (part.view(B, T, self.heads, self.head_dim) for part in self.qkv(x_BTC).split(C, dim=2))
        q_BHTD, k_BHTD, v_BHTD = (part.transpose(1, 2) for part in qkv_BTHD)
        if self.qk_norm:
            q_BHTD = F.rms_norm(q_BHTD, (self.head_dim,))
            k_BHTD = F.rms_norm(k_BHTD, (self.head_dim,))
        dropout = self.dropout if self.training else 0.0
        attend = F.scaled_dot_product_attention
        y_BHTD = attend(q_BHTD, k_BHTD, v_BHTD, is_causal=True, scale=self.scale, dropout_p=dropout)
        return self.out(y_BHTD.transpose(1, 2).reshape(B, T, C))


class MLP(nn.Module):
    """x (B, T, C) -> (B, T, C), without the residual sum."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = config.activation
        self.up = nn.Linear(config.width, config.mlp_ratio * config.width, bias=config.bias)
        self.down = nn.Linear(config.mlp_ratio * config.width, config.width, bias=config.bias)

    def declarations(self) -> dict[str, Declaration]:
        """See `parameters.collect`."""
        return linear(self.up, "up", "mlp") | linear(self.down, "down", "mlp", closes_branch=True)

    def forward(self, x_BTC: torch.Tensor) -> torch.Tensor:
        """Up, nonlinearity, down."""
        h_BTF = self.up(x_BTC)
        h_BTF = F.gelu(h_BTF, approximate="tanh") if self.activation == "gelu" else F.relu(h_BTF)
        return self.down(h_BTF)


class Block(nn.Module):
    """x (B, T, C) -> x + α·attention(norm(x)), then the same with the MLP; `layer` is its index, for the taps."""

    def __init__(self, config: ModelConfig, layer: int, multipliers: Multipliers) -> None:
        super().__init__()
        self.layer, self.multiplier = layer, multipliers.residual
        self.attention_norm = make_norm(config)
        self.attention = Attention(config, multipliers.attention)
        self.mlp_norm = make_norm(config)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(config.dropout)

    def declarations(self) -> dict[str, Declaration]:
        """See `parameters.collect`. A branch's LayerNorm sits inside it, so it scales like a bias of the branch."""
        first = layer_norm(self.attention_norm, "attention_norm", Role.HIDDEN_BIAS)
        return first | layer_norm(self.mlp_norm, "mlp_norm", Role.HIDDEN_BIAS)

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
