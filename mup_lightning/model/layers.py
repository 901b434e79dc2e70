"""One Transformer block and its two residual branches, each under the same multiplier.

Shapes: B batch, T positions, C width, H heads, D head dimension (C = H·D), R = D/2 pairs of its channels, G heads of
keys and values (H without sharing), S positions with those before them.
"""

import torch
import torch.nn.functional as F
from torch import nn

from mup_lightning.config.model import ModelConfig
from mup_lightning.model import taps
from mup_lightning.model.mlp import MLP, Experts
from mup_lightning.model.parameters import Declaration, linear, norm
from mup_lightning.spectral.recipe import Multipliers
from mup_lightning.spectral.roles import Role


def make_norm(config: ModelConfig) -> nn.Module:
    """A norm over the width, or the identity where the model has none."""
    if not config.layer_norm:
        return nn.Identity()
    if config.norm == "rmsnorm":
        return nn.RMSNorm(config.width, eps=config.norm_eps)
    return nn.LayerNorm(config.width, eps=config.norm_eps, bias=config.bias)


def rotation(positions: torch.Tensor, head_dim: int, base: float, dtype: torch.dtype) -> torch.Tensor:
    """Cosines and sines of the angles position·base^(-2i/D), i < R, computed in float32: (2, T, R), or (2, B, T, R)."""
    exponents_R = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    angles = positions.float()[..., None] * (1.0 / base**exponents_R)
    return torch.stack((angles.cos(), angles.sin())).to(dtype)


def documents(tokens_BT: torch.Tensor, end_of_text: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the documents in windows are, each beginning with an end-of-text token, but for the first in a window.

    Returns:
        Positions in the document (B, T), and the mask (B, 1, T, T): whether a query (T) attends to a key (T), of its
        own document, and not after it. It takes T² bytes a window, and torch's attention with a mask rather than its
        causal kernel, which on a GPU is flash attention.
    """
    begins_BT = tokens_BT == end_of_text
    index_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
    first_BT = torch.where(begins_BT, index_T, 0).cummax(1).values
    mask_BTT = (first_BT[:, :, None] == first_BT[:, None, :]) & (index_T[:, None] >= index_T)
    return index_T - first_BT, mask_BTT[:, None]


def rotate(x_BTHD: torch.Tensor, turn_2TR: torch.Tensor) -> torch.Tensor:
    """Turn the pairs of channels (i, i + R) of queries or keys (Su et al. 2021, arXiv 2104.09864; Llama's pairs)."""
    (first, second), (cos, sin) = x_BTHD.chunk(2, dim=-1), turn_2TR.unsqueeze(-2)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x_BTHD.dtype)


def rms_norm(x_BTHD: torch.Tensor, gain_D: torch.Tensor | None, eps: float | None = None) -> torch.Tensor:
    """Divide each head's queries or keys by their RMS, and multiply them by a gain if there is one."""
    return F.rms_norm(x_BTHD, x_BTHD.shape[-1:], None if gain_D is None else gain_D.to(x_BTHD.dtype), eps)


class Attention(nn.Module):
    """x (B, T, C) -> (B, T, C), without the residual sum.

    `multiplier` is a factor on the attention logits, besides that of `config.attention_scale`.
    """

    def __init__(self, config: ModelConfig, multiplier: float) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.scale = self.head_dim ** (-1.0 if config.attention_scale == "1/d" else -0.5) * multiplier
        self.qk_norm, self.dropout, self.kv_dim = config.qk_norm, config.dropout, config.kv_dim
        self.eps = config.norm_eps if config.norm == "rmsnorm" else None
        # Q, K and V in one product; they are three matrices stacked along the rows, and declared as such. Narrower keys
        # and values scale in their own way, and are no rows of the queries' matrix.
        C, Q, bias = config.width, config.query_dim, config.bias
        self.products = {"q": [Q], "kv": [config.kv_dim] * 2} if config.grouped else {"qkv": [Q] * 3}
        for name, sides in self.products.items():
            self.add_module(name, nn.Linear(C, sum(sides), bias=bias))
        self.out = nn.Linear(Q, C, bias=bias)
        self.q_gain = nn.Parameter(torch.ones(self.head_dim)) if config.qk_gain else None
        self.k_gain = nn.Parameter(torch.ones(self.head_dim)) if config.qk_gain else None

    def declarations(self) -> dict[str, Declaration]:
        """See `parameters.collect`."""
        result = linear(self.out, "out", "attention", closes_branch=True)
        for name, sides in self.products.items():
            heads, side = sum(sides) // self.head_dim, "kv" if name == "kv" else ""
            result |= linear(getattr(self, name), name, "attention", blocks=len(sides), heads=heads, side=side)
        if self.q_gain is not None:
            gain = Declaration(Role.HIDDEN_BIAS, "gain", constant=1.0, side="head")
            result |= {"q_gain": gain, "k_gain": gain}
        return result

    def forward(
        self,
        x_BTC: torch.Tensor,
        turn_2TR: torch.Tensor | None = None,
        kv_2BGSD: torch.Tensor | None = None,
        mask_B1TT: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Causal self-attention, within what a mask allows; head h takes the keys and values of head h·G/H.

        `turn_2TR` is RoPE's `rotation`, and `mask_B1TT` that of `documents`. `kv_2BGSD` has the keys and values of
        earlier positions, and takes those of x as its last T.
        """
        T = x_BTC.shape[1]
        first, *more = (getattr(self, name)(x_BTC) for name in self.products)
        parts = (first, *more[0].split(self.kv_dim, dim=2)) if more else first.chunk(3, dim=2)
        q_BTHD, k_BTGD, v_BTGD = (part.unflatten(2, (-1, self.head_dim)) for part in parts)
        if self.qk_norm:
            q_BTHD, k_BTGD = rms_norm(q_BTHD, self.q_gain, self.eps), rms_norm(k_BTGD, self.k_gain, self.eps)
        if turn_2TR is not None:
            q_BTHD, k_BTGD = rotate(q_BTHD, turn_2TR), rotate(k_BTGD, turn_2TR)
        k_BGSD, v_BGSD, seen_TS = k_BTGD.transpose(1, 2), v_BTGD.transpose(1, 2), None
        if kv_2BGSD is not None:
            kv_2BGSD[0, :, :, -T:], kv_2BGSD[1, :, :, -T:] = k_BGSD, v_BGSD
            k_BGSD, v_BGSD = kv_2BGSD
            S = k_BGSD.shape[2]
            seen_TS = torch.ones(T, S, dtype=torch.bool, device=x_BTC.device).tril(S - T) if 1 < T < S else None
        y_BHTD = F.scaled_dot_product_attention(
            q_BTHD.transpose(1, 2),
            k_BGSD,
            v_BGSD,
            attn_mask=seen_TS if mask_B1TT is None else mask_B1TT,
            is_causal=mask_B1TT is None and k_BGSD.shape[2] == T,
            scale=self.scale,
            dropout_p=self.dropout if self.training else 0.0,
            enable_gqa=k_BGSD.shape[1] < q_BTHD.shape[2],
        )
        return self.out(y_BHTD.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """x (B, T, C) -> x + α·attention(norm(x)), then the same with the MLP, which in parallel blocks reads x itself.

    `layer` is its index, for the taps. Returned with what `Experts` says of their balance; None without experts.
    """

    def __init__(self, config: ModelConfig, layer: int, multipliers: Multipliers) -> None:
        super().__init__()
        self.layer, self.multiplier, self.parallel = layer, multipliers.residual, config.parallel
        self.attention_norm = make_norm(config)
        self.attention = Attention(config, multipliers.attention)
        self.mlp_norm = make_norm(config)
        self.mlp = MLP(config) if config.experts is None else Experts(config)
        self.dropout = nn.Dropout(config.dropout)

    def declarations(self) -> dict[str, Declaration]:
        """See `parameters.collect`. A branch's norm sits inside it, so it scales like a bias of the branch."""
        first = norm(self.attention_norm, "attention_norm", Role.HIDDEN_BIAS)
        return first | norm(self.mlp_norm, "mlp_norm", Role.HIDDEN_BIAS)

    def forward(
        self,
        x_BTC: torch.Tensor,
        recorder: taps.Recorder | None = None,
        turn_2TR: torch.Tensor | None = None,
        kv_2BGSD: torch.Tensor | None = None,
        mask_B1TT: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Both branches; see `Attention.forward`."""
        before_BTC = x_BTC
        branch_BTC = self.attention(self.attention_norm(x_BTC), turn_2TR, kv_2BGSD, mask_B1TT)
        x_BTC = self._add(x_BTC, branch_BTC, recorder, taps.ATTENTION)
        normed_BTC, balance = self.mlp_norm(before_BTC if self.parallel else x_BTC), None
        if isinstance(self.mlp, Experts):
            branch_BTC, balance = self.mlp(normed_BTC, recorder, self.layer)
        else:
            branch_BTC = self.mlp(normed_BTC)
        x_BTC = self._add(x_BTC, branch_BTC, recorder, taps.MLP)
        if recorder is not None:
            recorder.feature(taps.RESIDUAL, self.layer, x_BTC)
        return x_BTC, balance

    def _add(
        self, x_BTC: torch.Tensor, branch_BTC: torch.Tensor, recorder: taps.Recorder | None, point: str
    ) -> torch.Tensor:
        """The stream after a branch, which is recorded with and without its multiplier."""
        if recorder is not None:
            recorder.feature(point, self.layer, branch_BTC, self.multiplier)
        return torch.add(x_BTC, self.dropout(branch_BTC), alpha=self.multiplier)
