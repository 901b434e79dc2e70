"""Causal multi-head self-attention. Shapes: B batch, T positions, C width, H heads, D head dimension (C = H·D)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from mup_lightning.config.schema import ModelConfig
from mup_lightning.model.parameters import Declaration, linear


class Attention(nn.Module):
    """x (B, T, C) -> (B, T, C), without the residual sum."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.head_dim = config.width // config.head_dim, config.head_dim
        self.scale = self.head_dim ** (-0.5 if config.attention_scale == "1/sqrt(d)" else -1.0)
        self.qk_norm, self.dropout = config.qk_norm, config.dropout
        # Q, K and V in one product; they are three matrices stacked along the rows, and declared as such.
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=config.bias)
        self.out = nn.Linear(config.width, config.width, bias=config.bias)

    def declarations(self) -> dict[str, Declaration]:
        """See `parameters.Declares`."""
        return linear(self.qkv, "qkv", blocks=3) | linear(self.out, "out", closes_branch=True)

    def forward(self, x_BTC: torch.Tensor) -> torch.Tensor:
        """Attend."""
        B, T, C = x_BTC.shape
        qkv_BTHD = (part.view(B, T, self.heads, self.head_dim) for part in self.qkv(x_BTC).split(C, dim=2))
        q_BHTD, k_BHTD, v_BHTD = (part.transpose(1, 2) for part in qkv_BTHD)
        if self.qk_norm:
            q_BHTD = F.rms_norm(q_BHTD, (self.head_dim,))
            k_BHTD = F.rms_norm(k_BHTD, (self.head_dim,))
        y_BHTD = F.scaled_dot_product_attention(
            q_BHTD,
            k_BHTD,
            v_BHTD,
            is_causal=True,
            scale=self.scale,
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.out(y_BHTD.transpose(1, 2).reshape(B, T, C))
