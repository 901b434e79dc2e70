"""One training of a coordinate check, with a look at the same few windows before the first step and after every one."""

from __future__ import annotations

import math
import time
from typing import Any

import lightning.pytorch as pl
import torch

from mup_lightning.callbacks.step import StepCallback, WatchedModule
from mup_lightning.errors import Diverged
from mup_lightning.experiments.coordinates.cells import Cell
from mup_lightning.experiments.coordinates.recorder import ChangeRecorder
from mup_lightning.model.taps import LOGITS, Recorder

PROBE_TOKENS = 512
"""Features are measured on so many validation tokens, in whole windows."""


class FeatureProbe(StepCallback):
    """Measures features in forward passes of its own, which leave no trace in the training.

    Attributes:
        recorder: what was found, a round before the first step and one after every step.
        losses: training loss of every step, nats per token.
    """

    def __init__(self) -> None:
        self.recorder = ChangeRecorder()
        self.losses: list[float] = []
        self._windows: torch.Tensor | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The first round: what later ones are compared with."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        windows = data.val_windows(max(1, PROBE_TOKENS // data.context))
        self._windows = next(windows).to(pl_module.device)
        self._look(pl_module)

    def on_step_end(self, trainer: pl.Trainer, module: WatchedModule, step: int) -> None:
        """See `StepCallback`."""
        self.losses.append(float(module.step_loss()))
        self._look(module)

    @torch.no_grad()
    def _look(self, module: Any) -> None:
        assert self._windows is not None
        was_training = module.training
        module.eval()  # no dropout
        # In float32 whatever the training's precision: small changes shall not drown in rounding.
        with torch.autocast(module.device.type, enabled=False), torch.compiler.set_stance("force_eager"):
            observe(module.model, self._windows[:, :-1], self.recorder)
        module.train(was_training)


def observe(model: Any, tokens_BT: torch.Tensor, recorder: Recorder) -> None:
    """Show a recorder all features of a `GPT2`, the logits too: whole, and without padding symbols."""
    features_BTC = model.features(tokens_BT, recorder)
    logits_BTV = (features_BTC @ model.output_matrix.t())[..., : model.vocab_size]
    recorder.feature(LOGITS, None, logits_BTV)


def measure(cell: Cell) -> dict[str, Any]:
    """Train a cell.

    Returns:
        Plain values: "parametrization", "width", "depth", "seed", "norms" and "changes" (tap -> a number after 0, 1,
        ... steps), "losses" (of each step), "diverged" (null, or in which step, and what was seen), "seconds". Of a run
        that diverged, the steps before.
    """
    from mup_lightning.training.train import train

    begin = time.perf_counter()
    probe = FeatureProbe()
    diverged: str | None = None
    try:
        result = train(cell.config, callbacks=[probe], progress=False, keep=False)
    except Diverged as error:
        diverged = f"step {error.step}: {str(error).splitlines()[0].partition(' in step')[0]}"
    else:
        if not result.finished:  # a signal ended it between two steps
            raise KeyboardInterrupt
    rounds = _finite_rounds(probe.recorder)
    if diverged is None and rounds < len(probe.losses) + 1:
        diverged = f"step {rounds}: a feature is no longer finite"
    return {
        "parametrization": cell.parametrization,
        "width": cell.width,
        "depth": cell.depth,
        "seed": cell.seed,
        "norms": _rounded(probe.recorder.norms, rounds),
        "changes": _rounded(probe.recorder.changes, rounds),
        "losses": probe.losses[: max(0, rounds - 1)],
        "diverged": diverged,
        "seconds": round(time.perf_counter() - begin, 2),
    }


def _finite_rounds(recorder: ChangeRecorder) -> int:
    """Rounds before the first one in which anything was not finite."""
    columns = list(zip(*recorder.norms.values(), *recorder.changes.values(), strict=True))
    return next((n for n, column in enumerate(columns) if not all(map(math.isfinite, column))), len(columns))


def _rounded(curves: dict[str, list[float]], rounds: int) -> dict[str, list[float]]:
    """Six digits are more than anybody needs, and half of the file."""
    return {name: [float(f"{value:.6g}") for value in curve[:rounds]] for name, curve in curves.items()}
