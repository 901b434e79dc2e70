"""The second branch of a block: an MLP for all tokens, or a mixture of experts, of which each takes some of them.

Shapes: B batch, T positions, C width, F hidden units of an MLP, E experts, K of them for each token, N = B·T tokens,
M = N·K of their assignments, in order of the experts.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from mup_lightning.config.model import ModelConfig
from mup_lightning.model import taps
from mup_lightning.model.parameters import Declaration, linear
from mup_lightning.spectral.roles import Role

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    **{"gelu": partial(F.gelu, approximate="tanh"), "relu": F.relu, "silu": F.silu},
}


def activated(products: torch.Tensor, name: str, gated: bool) -> torch.Tensor:
    """The activation of this name; with a gate, of the first half of the channels, times the second half."""
    if not gated:
        return ACTIVATIONS[name](products)
    gate, up = products.chunk(2, dim=-1)
    return ACTIVATIONS[name](gate) * up


class MLP(nn.Module):
    """x (B, T, C) -> (B, T, C), without the residual sum."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation, self.gated = config.activation, config.gated
        # Gate and up in one product, two matrices stacked along the rows.
        self.first = "gate_up" if config.gated else "up"
        self.add_module(self.first, nn.Linear(config.width, (1 + config.gated) * config.hidden, bias=config.bias))
        self.down = nn.Linear(config.hidden, config.width, bias=config.bias)

    def declarations(self) -> dict[str, Declaration]:
        """See `parameters.collect`."""
        first = linear(getattr(self, self.first), self.first, "mlp", blocks=1 + self.gated)
        return first | linear(self.down, "down", "mlp", closes_branch=True)

    def forward(self, x_BTC: torch.Tensor) -> torch.Tensor:
        """Up, with the gate, activation, down."""
        return self.down(activated(getattr(self, self.first)(x_BTC), self.activation, self.gated))


class Experts(nn.Module):
    """x (B, T, C) -> (B, T, C), without the residual sum, and how unbalanced the experts' loads are, 0-dim.

    As in Mixtral (arXiv 2401.04088): the softmax of the router's logits, of which the K largest, made to add up to 1,
    weigh what their experts compute. The logits are float32 in every precision, because rounding would send tokens
    elsewhere. All matrices of the experts are stacked along the rows, an expert's gate before its up.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.experts is not None
        self.experts, self.per_token = config.experts, config.experts_per_token
        self.activation, self.gated = config.activation, config.gated
        C, hidden = config.width, config.experts * config.hidden
        self.router = nn.Linear(C, self.experts, bias=False)
        self.first = "gate_up" if config.gated else "up"
        self.register_parameter(self.first, nn.Parameter(torch.empty((1 + config.gated) * hidden, C)))
        self.down = nn.Parameter(torch.empty(self.experts * C, config.hidden))

    def declarations(self) -> dict[str, Declaration]:
        """See `parameters.collect`."""
        return linear(self.router, "router", "router", side="experts", routed=True) | {
            self.first: Declaration(Role.HIDDEN, "mlp", blocks=self.experts * (1 + self.gated), routed=True),
            "down": Declaration(Role.HIDDEN, "mlp", blocks=self.experts, closes_branch=True, routed=True),
        }

    def forward(
        self, x_BTC: torch.Tensor, recorder: taps.Recorder | None = None, layer: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The experts' weighted sum, and E·Σ_e f_e·p_e, averaged over the sequences.

        f_e is the share of a sequence's assignments that expert e has, and p_e its mean probability there: 1 where both
        are even (arXiv 2101.03961, section 2.2). The loss is that of each sequence, as in DeepSeek-V3 (arXiv
        2412.19437, eq. 17), since loads of whole micro-batches would make training depend on their size.
        """
        K, x_NC = self.per_token, x_BTC.flatten(0, 1)
        with torch.autocast(x_BTC.device.type, enabled=False):
            logits_BTE = self.router(x_BTC.to(self.router.weight.dtype))
        p_BTE = logits_BTE.softmax(-1)
        gate_BTK, chosen_BTK = p_BTE.topk(K, dim=-1)
        gate_BTK = gate_BTK / gate_BTK.sum(-1, keepdim=True)
        counts_BE = (chosen_BTK[..., None] == torch.arange(self.experts, device=x_BTC.device)).sum((1, 2))
        load_BE = counts_BE / (x_BTC.shape[1] * K)
        balance = self.experts * (load_BE.to(p_BTE.dtype) * p_BTE.mean(1)).sum(-1).mean()
        if recorder is not None:
            recorder.feature(taps.ROUTER, layer, logits_BTE)
            recorder.feature(taps.LARGEST_LOAD, layer, load_BE.mean(0).max())

        order_M = chosen_BTK.flatten().argsort(stable=True)
        ends_E = counts_BE.sum(0).cumsum(0).to(torch.int32)
        x_MC = self._cast(x_NC).index_select(0, order_M // K)
        hidden = activated(self._multiply(x_MC, getattr(self, self.first), ends_E), self.activation, self.gated)
        y_MC = self._multiply(hidden, self.down, ends_E)
        y_NKC = y_MC.index_select(0, order_M.argsort()).view(-1, K, x_BTC.shape[2])
        return (y_NKC * gate_BTK.flatten(0, 1)[..., None]).sum(1).view(x_BTC.shape), balance

    def _multiply(self, x_MI: torch.Tensor, weight: torch.Tensor, ends_E: torch.Tensor) -> torch.Tensor:
        """Each row of x times its expert's matrix: (M, I) by (E·O, I) -> (M, O)."""
        return grouped(self._cast(x_MI), self._cast(weight).unflatten(0, (self.experts, -1)), ends_E)

    def _cast(self, x: torch.Tensor) -> torch.Tensor:
        """In the dtype of matrix products, which is autocast's where that is on."""
        kind = x.device.type
        return x.to(torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.down.dtype)


@torch.library.custom_op("mup_lightning::grouped", mutates_args=())
def grouped(x_MI: torch.Tensor, weight_EOI: torch.Tensor, ends_E: torch.Tensor) -> torch.Tensor:
    """Rows of x times the transposed matrix of their group, whose rows are those before `ends_E` (int32): (M, O).

    An operation of its own, since torch's grouped product cannot be compiled in float32 (2.13), is not known to
    autocast, and takes neither float64 nor sides that are no multiples of 16 bytes. Those go group by group.
    """
    if _aligned(x_MI, weight_EOI):
        return F.grouped_mm(x_MI.contiguous(), weight_EOI.transpose(1, 2), offs=ends_E)
    parts = zip(x_MI.tensor_split(ends_E.tolist()[:-1]), weight_EOI, strict=True)
    return torch.cat([part @ matrix.t() for part, matrix in parts])


@torch.library.custom_op("mup_lightning::grouped_outer", mutates_args=())
def grouped_outer(a_MO: torch.Tensor, b_MI: torch.Tensor, ends_E: torch.Tensor) -> torch.Tensor:
    """Of every group of rows, aᵀ·b: (E, O, I). Zeros for a group without rows."""
    if _aligned(a_MO, b_MI):
        return F.grouped_mm(a_MO.contiguous().t(), b_MI.contiguous(), offs=ends_E)
    ends = ends_E.tolist()[:-1]
    return torch.stack([a.t() @ b for a, b in zip(a_MO.tensor_split(ends), b_MI.tensor_split(ends), strict=True)])


def _aligned(*tensors: torch.Tensor) -> bool:
    """Whether torch's grouped product takes them."""
    sides = [side for tensor in tensors for side in tensor.shape[1:]]
    bytes_of_one = tensors[0].element_size()
    return len(tensors[0]) > 0 and bytes_of_one <= 4 and all(side * bytes_of_one % 16 == 0 for side in sides)


@grouped.register_fake
def _(x_MI: torch.Tensor, weight_EOI: torch.Tensor, ends_E: torch.Tensor) -> torch.Tensor:
    return x_MI.new_empty(x_MI.shape[0], weight_EOI.shape[1])


@grouped_outer.register_fake
def _(a_MO: torch.Tensor, b_MI: torch.Tensor, ends_E: torch.Tensor) -> torch.Tensor:
    return a_MO.new_empty(ends_E.shape[0], a_MO.shape[1], b_MI.shape[1])


def _keep(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: torch.autograd.function.FunctionCtx, d_MO: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
    x_MI, weight_EOI, ends_E = ctx.saved_tensors  # type: ignore[attr-defined]
    return grouped(d_MO, weight_EOI.transpose(1, 2), ends_E), grouped_outer(d_MO, x_MI, ends_E), None


grouped.register_autograd(_backward, setup_context=_keep)
