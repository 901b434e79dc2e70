"""A recorder that remembers: the RMS norm of every feature, and of its change since the first time it was seen."""

from __future__ import annotations

import torch

from mup_lightning.model.taps import ATTENTION, ATTENTION_SCALED, MLP, MLP_SCALED

SCALED = {ATTENTION_SCALED: ATTENTION, MLP_SCALED: MLP}
"""A branch times its multiplier -> the branch: the same feature times a constant, which needs no copy of its own."""


class ChangeRecorder:
    """Told of the same features again and again; see `taps.Recorder`.

    The first round's features are kept, on their device.

    Attributes:
        norms: tap -> ‖h‖_R, one number a round. A tap is "residual/3" inside block 3, "logits" outside blocks.
        changes: tap -> ‖h − h_0‖_R, likewise; 0 in the first round.
    """

    def __init__(self) -> None:
        self.norms: dict[str, list[float]] = {}
        self.changes: dict[str, list[float]] = {}
        self._start: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def feature(self, point: str, layer: int | None, x: torch.Tensor, scale: float = 1.0) -> None:
        """Record a feature, in float32."""
        name = tap(point, layer)
        if point in SCALED:
            whole = tap(SCALED[point], layer)
            norm, change = abs(scale) * self.norms[whole][-1], abs(scale) * self.changes[whole][-1]
        else:
            x = x.detach().float() * scale  # a copy: the model may go on in the feature's own memory
            start = self._start.setdefault(name, x)
            norm, change = _rms(x), _rms(x - start)
        self.norms.setdefault(name, []).append(norm)
        self.changes.setdefault(name, []).append(change)

    def rms(self, point: str, layer: int | None, value: torch.Tensor) -> None:
        """A norm alone says nothing about a change: features must come whole."""
        raise NotImplementedError(f"{tap(point, layer)} came as a norm alone")


def tap(point: str, layer: int | None) -> str:
    """The name of a measuring point in result files."""
    return point if layer is None else f"{point}/{layer}"


def _rms(x: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(x)) * x.numel() ** -0.5
