"""One training of a coordinate check, with a look at the same few windows before the first step and after every one."""

import math
from typing import Any

import lightning.pytorch as pl
import torch

from mup_lightning.callbacks.step import StepCallback, WatchedModule
from mup_lightning.config.schema import Config
from mup_lightning.errors import Diverged
from mup_lightning.model import taps
from mup_lightning.studies.scaling import Run, six_digits
from mup_lightning.training.train import train

PROBE_TOKENS = 512
"""Validation tokens, in whole windows, on which features are measured."""

ALLOWED_RISE = 1.0
"""Nats per token by which a loss may exceed the first one, or that of a uniform guess."""


def features(axis: str, depth: int, experts: bool = False) -> dict[str, list[str]]:
    """Name of a feature -> its taps in a model of this depth, of which the largest counts.

    Where the depth grows, blocks are compared at equal fractions of it. So the residual stream has no "first block"
    there: after it, 1/L of the branches are in, and the stream is closer to the embedding the deeper the model is.
    """
    result = {taps.EMBEDDING: [taps.EMBEDDING]}
    for point in (taps.ATTENTION, taps.MLP, taps.RESIDUAL, *([taps.ROUTER] if experts else [])):
        # The residual stream after half of the blocks, and the branches that it then enters.
        middle = max(0, depth // 2 - (point == taps.RESIDUAL))
        places = {"first block": [0], "middle block": [middle], "last block": [depth - 1], "largest": range(depth)}
        if point == taps.RESIDUAL and axis in ("depth", "both"):
            del places["first block"]
        result |= {f"{point}, {place}": [f"{point}/{n}" for n in layers] for place, layers in places.items()}
    return result | {point: [point] for point in (taps.FINAL_NORM, taps.LOGITS)}


class FeatureProbe(StepCallback):
    """Measures features and their changes, in forward passes of its own, which leave no trace in the training.

    It is their recorder, too; see `taps.Recorder`. A branch times its multiplier is the same feature times a constant,
    and is left out. By tap, `norms` has ‖h‖_R before the first step and after every one, `changes` ‖h − h₀‖_R likewise;
    `losses` are those of the training steps, nats per token.
    """

    def __init__(self) -> None:
        self.norms: dict[str, list[float]] = {}
        self.changes: dict[str, list[float]] = {}
        self.losses: list[float] = []
        self._start: dict[str, torch.Tensor] = {}
        self._windows: torch.Tensor

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure what later features are compared with."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        self._windows = next(data.val_windows(max(1, PROBE_TOKENS // data.context))).to(pl_module.device)
        self._look(pl_module)

    def on_step_end(self, trainer: pl.Trainer, module: WatchedModule, step: int) -> None:
        """Measure once more."""
        self.losses.append(float(module.step_loss()))
        self._look(module)

    @torch.no_grad()
    def _look(self, module: Any) -> None:
        was_training = module.training
        module.eval()  # no dropout
        # In float32 whatever the precision of the training, so that small changes do not drown in rounding.
        with torch.autocast(module.device.type, enabled=False), torch.compiler.set_stance("force_eager"):
            observe(module.model, self._windows[:, :-1], self)
        module.train(was_training)

    @torch.no_grad()
    def feature(self, point: str, layer: int | None, x: torch.Tensor, multiplier: float | None = None) -> None:
        """Record a feature, in float32."""
        name = point if layer is None else f"{point}/{layer}"
        x = x.detach().to(torch.float32, copy=True)  # the model may overwrite the feature's memory
        start = self._start.setdefault(name, x)
        for curves, value in ((self.norms, x), (self.changes, x - start)):
            curves.setdefault(name, []).append(float(torch.linalg.vector_norm(value)) * x.numel() ** -0.5)


def observe(model: Any, tokens_BT: torch.Tensor, recorder: taps.Recorder) -> None:
    """Show a recorder all features of a `GPT2`, including the logits: whole, and without padding tokens."""
    features_BTC = model.features(tokens_BT, recorder)
    logits_BTV = (features_BTC @ model.output_matrix.t())[..., : model.vocab_size]
    recorder.feature(taps.LOGITS, None, logits_BTV)


def measure(axis: str, config: Config) -> Run:
    """Train, and measure features after every step for as long as all of them are finite.

    `measured` is "norms" and "changes": feature -> the largest ‖h‖_R, or ‖h − h₀‖_R, of its taps after 0, 1, ... steps.
    """
    probe, diverged = FeatureProbe(), None
    try:
        result = train(config, callbacks=[probe], progress=False, keep=False)
    except Diverged as error:
        diverged = error.short
    else:
        if not result.finished:  # a signal ended it between two steps
            raise KeyboardInterrupt
    rounds = list(zip(*probe.norms.values(), *probe.changes.values(), strict=True))
    sound = next((n for n, values in enumerate(rounds) if not all(map(math.isfinite, values))), len(rounds))
    if diverged is None and sound < len(rounds):
        diverged = f"step {sound}: a feature is no longer finite"
    losses = probe.losses[: max(0, sound - 1)]
    model = config.model
    named = features(axis, model.depth, model.experts is not None) if sound else {}
    measured = {
        kind: {
            name: [max(at) for at in zip(*(curves[tap][:sound] for tap in of), strict=True)]
            for name, of in named.items()
        }
        for kind, curves in (("norms", probe.norms), ("changes", probe.changes))
    }
    assert model.vocab_size is not None
    shape = (model.width, model.depth) + ((model.experts or 0,) if axis == "experts" else ())
    diverged = diverged or rise(losses, model.vocab_size)
    return Run((config.recipe.parametrization,), shape, config.seed, losses, six_digits(measured), diverged)


def rise(losses: list[float], vocab_size: int) -> str | None:
    """Whether training made the model worse, which features may not show.

    That is the first step whose loss (nats per token) exceeds that of the first step, and exceeds it or that of a
    uniform guess, ln V, by more than `ALLOWED_RISE`; None if there is none.
    """
    first, guess = losses[0] if losses else 0.0, math.log(vocab_size)
    for step, loss in enumerate(losses[1:], start=2):
        if loss > max(first, min(first, guess) + ALLOWED_RISE):
            known = f"it was {first:.4g} in step 1, and a uniform guess has {guess:.4g}"
            return f"step {step}: the loss is {loss:.4g}; {known}"
    return None
