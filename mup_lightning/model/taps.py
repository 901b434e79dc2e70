"""Taps: named measuring points inside the forward pass.

The model calls its recorder at every point, if there is one. Points are inside the model rather than in forward hooks,
because hooks are silently lost under torch.compile. A feature is `scale · x`: the model never forms a
branch times its multiplier separately, and its RMS norm needs no second pass.
"""

from typing import Protocol

import torch

EMBEDDING = "embedding"
ATTENTION = "attention"
ATTENTION_SCALED = "attention_scaled"
MLP = "mlp"
MLP_SCALED = "mlp_scaled"
RESIDUAL = "residual"
ROUTER = "router"
LARGEST_LOAD = "largest_load"
FINAL_NORM = "final_norm"
LOGITS = "logits"

LAYER_POINTS = (ATTENTION, ATTENTION_SCALED, MLP, MLP_SCALED, RESIDUAL)
"""Points that every block has, in the order of the forward pass."""

EXPERT_POINTS = (ROUTER, LARGEST_LOAD)
"""Of blocks with experts: the router's logits, and the share of tokens of the expert that has most of them."""

POINTS = (EMBEDDING, *LAYER_POINTS, FINAL_NORM, LOGITS)
"""All points of models without experts."""


class Recorder(Protocol):
    """What the model calls at its measuring points."""

    def feature(self, point: str, layer: int | None, x: torch.Tensor, scale: float = 1.0) -> None:
        """A feature: `scale · x`, of layer `layer` (None outside blocks)."""
        ...

    def rms(self, point: str, layer: int | None, value: torch.Tensor) -> None:
        """The RMS norm (a 0-dim tensor) of a feature too large to exist as a whole."""
        ...


class NormRecorder:
    """Keeps the RMS norm ‖x‖₂/√numel of each feature on the device, and copies them to the host in one transfer."""

    def __init__(self) -> None:
        self._names: list[tuple[str, int | None]] = []
        self._norms: list[torch.Tensor] = []

    @torch.no_grad()
    def feature(self, point: str, layer: int | None, x: torch.Tensor, scale: float = 1.0) -> None:
        """Record ‖scale · x‖_R, computed in float32."""
        norm = torch.linalg.vector_norm(x.detach(), dtype=torch.float32)
        self.rms(point, layer, norm * (abs(scale) * x.numel() ** -0.5))

    def rms(self, point: str, layer: int | None, value: torch.Tensor) -> None:
        """Record an RMS norm that the model computed itself."""
        self._names.append((point, layer))
        self._norms.append(value.detach().float())

    def norms(self) -> dict[tuple[str, int | None], float]:
        """(point, layer) -> RMS norm. One device synchronisation."""
        if not self._norms:
            return {}
        return dict(zip(self._names, torch.stack(self._norms).tolist(), strict=True))
