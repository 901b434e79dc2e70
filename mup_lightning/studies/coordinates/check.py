"""One training of a coordinate check, with a look at the same few windows before the first step and after every one."""

from __future__ import annotations

import math
import time
from typing import Any

import lightning.pytorch as pl
import torch

from mup_lightning.callbacks.step import StepCallback, WatchedModule
from mup_lightning.errors import Diverged
from mup_lightning.model.taps import LOGITS, Recorder
from mup_lightning.studies.coordinates.cells import Cell
from mup_lightning.studies.coordinates.recorder import ChangeRecorder

PROBE_TOKENS = 512
"""Features are measured on so many validation tokens, in whole windows."""

ALLOWED_RISE = 1.0
"""Nats per token by which a loss may exceed the first one, or that of a model that knows nothing."""


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
        whose numbers did not stay finite, the steps before.
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
    losses = probe.losses[: max(0, rounds - 1)]
    if diverged is None:
        assert cell.config.model.vocab_size is not None
        diverged = risen(losses, cell.config.model.vocab_size)
    return {
        "parametrization": cell.parametrization,
        "width": cell.width,
        "depth": cell.depth,
        "seed": cell.seed,
        "norms": _rounded(probe.recorder.norms, rounds),
        "changes": _rounded(probe.recorder.changes, rounds),
        "losses": losses,
        "diverged": diverged,
        "seconds": round(time.perf_counter() - begin, 2),
    }


def risen(losses: list[float], symbols: int) -> str | None:
    """Whether training has made the model worse, though all numbers are finite: features may well be level then.

    Args:
        losses: of the steps, nats per token; the first is that of the initialisation.
        symbols: of the vocabulary, V; a model that knows nothing has a loss of ln V.

    Returns:
        The first step whose loss is above the first step's, and by more than a nat above it or above ln V; else None.
    """
    limit = max(losses[0], min(losses[0], math.log(symbols)) + ALLOWED_RISE) if losses else 0.0
    for step, loss in enumerate(losses[1:], start=2):
        if loss > limit:
            return (
                f"step {step}: the loss is {loss:.4g}; it was {losses[0]:.4g} in step 1, "
                f"and a model that knows nothing has {math.log(symbols):.4g}"
            )
    return None


def _finite_rounds(recorder: ChangeRecorder) -> int:
    """Rounds before the first one in which anything was not finite."""
    columns = list(zip(*recorder.norms.values(), *recorder.changes.values(), strict=True))
    return next((n for n, column in enumerate(columns) if not all(map(math.isfinite, column))), len(columns))


def _rounded(curves: dict[str, list[float]], rounds: int) -> dict[str, list[float]]:
    """Six digits are more than anybody needs, and half of the file."""
    return {name: [float(f"{value:.6g}") for value in curve[:rounds]] for name, curve in curves.items()}
