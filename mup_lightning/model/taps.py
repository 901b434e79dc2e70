"""Taps: named measuring points inside the forward pass.

The model calls its recorder at every point, if there is one. Points are inside the model rather than in forward hooks,
because hooks are silently lost under torch.compile. The model never forms a branch times its multiplier, which is a
feature of its own (`..._scaled`), and whose RMS norm needs no second pass.
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

    def feature(self, point: str, layer: int | None, x: torch.Tensor, multiplier: float | None = None) -> None:
        """A feature, of layer `layer` (None outside blocks); with a multiplier `multiplier · x` is one, too.

        One that is too large to exist as a whole comes as its RMS norm, a 0-dim tensor: the RMS norm of that is itself.
        """
        ...


class NormRecorder:
    """Keeps the RMS norm ‖x‖₂/√numel of each feature on the device, and copies them to the host in one transfer."""

    def __init__(self) -> None:
        self._norms: dict[tuple[str, int | None], torch.Tensor] = {}

    @torch.no_grad()
    def feature(self, point: str, layer: int | None, x: torch.Tensor, multiplier: float | None = None) -> None:
        """Record ‖x‖_R, computed in float32, and ‖multiplier · x‖_R."""
        norm, share = torch.linalg.vector_norm(x.detach(), dtype=torch.float32), x.numel() ** -0.5
        self._norms[point, layer] = norm * share
        if multiplier is not None:
            self._norms[f"{point}_scaled", layer] = norm * (abs(multiplier) * share)

    def norms(self) -> dict[tuple[str, int | None], float]:
        """(point, layer) -> RMS norm. One device synchronisation."""
        return dict(zip(self._norms, torch.stack(list(self._norms.values())).tolist(), strict=True))
