"""One training of a coordinate check, with a look at the same few windows before the first step and after every one."""

import math
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch

from mup_lightning.callbacks.step import StepCallback, WatchedModule
from mup_lightning.config.schema import Config
from mup_lightning.errors import Diverged
from mup_lightning.model import taps
from mup_lightning.studies.coordinates.results import Run
from mup_lightning.training.train import train

PROBE_TOKENS = 512
"""Validation tokens, in whole windows, on which features are measured."""

ALLOWED_RISE = 1.0
"""Nats per token by which a loss may exceed the first one, or that of a uniform guess."""


@dataclass(frozen=True)
class Training:
    """A training to be measured.

    Attributes:
        config: the whole configuration.
        axis: what grows from one training to the next: width, depth or both.
        work: expected time, in operations of one busy core.
        memory: its peak, in bytes.
    """

    config: Config
    axis: str
    work: float
    memory: int


def features(axis: str, depth: int) -> dict[str, list[str]]:
    """Name of a feature -> its taps in a model of this depth, of which the largest counts.

    Where the depth grows, blocks are compared at equal fractions of it. So the residual stream has no "first block"
    there: after it, 1/L of the branches are in, and the stream is closer to the embedding the deeper the model is.
    """
    result = {taps.EMBEDDING: [taps.EMBEDDING]}
    for point in (taps.ATTENTION, taps.MLP, taps.RESIDUAL):
        # The residual stream after half of the blocks, and the branches that it then enters.
        middle = max(0, depth // 2 - (point == taps.RESIDUAL))
        places = {"first block": [0], "middle block": [middle], "last block": [depth - 1], "largest": range(depth)}
        if point == taps.RESIDUAL and axis != "width":
            del places["first block"]
        result |= {f"{point}, {place}": [f"{point}/{n}" for n in layers] for place, layers in places.items()}
    return result | {point: [point] for point in (taps.FINAL_NORM, taps.LOGITS)}


class ChangeRecorder:
    """Measures every feature, and its change since the first round; see `taps.Recorder`.

    The features of the first round are kept, on their device. A branch times its multiplier is the same feature times
    a constant, and is left out.

    Attributes:
        norms: tap -> ‖h‖_R of every round.
        changes: tap -> ‖h − h₀‖_R likewise; 0 in the first round.
    """

    def __init__(self) -> None:
        self.norms: dict[str, list[float]] = {}
        self.changes: dict[str, list[float]] = {}
        self._start: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def feature(self, point: str, layer: int | None, x: torch.Tensor, scale: float = 1.0) -> None:
        """Record a feature, in float32."""
        if point in (taps.ATTENTION_SCALED, taps.MLP_SCALED):
            return
        name = point if layer is None else f"{point}/{layer}"
        x = x.detach().float() * scale  # a copy: the model may overwrite the feature's memory
        start = self._start.setdefault(name, x)
        self.norms.setdefault(name, []).append(_rms(x))
        self.changes.setdefault(name, []).append(_rms(x - start))

    def rms(self, point: str, layer: int | None, value: torch.Tensor) -> None:
        """Refuse a norm without its feature, from which no change follows."""
        raise NotImplementedError(f"{point} came as a norm alone")

    def finite_rounds(self) -> int:
        """Rounds before the first one that holds a value that is not finite."""
        rounds = list(zip(*self.norms.values(), *self.changes.values(), strict=True))
        return next((n for n, values in enumerate(rounds) if not all(map(math.isfinite, values))), len(rounds))


def _rms(x: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(x)) * x.numel() ** -0.5


class FeatureProbe(StepCallback):
    """Measures features in forward passes of its own, which leave no trace in the training.

    Attributes:
        recorder: the measurements: a round before the first step, and one after every step.
        losses: training loss of every step, nats per token.
    """

    def __init__(self) -> None:
        self.recorder = ChangeRecorder()
        self.losses: list[float] = []
        self._windows: torch.Tensor | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure the first round, which later ones are compared with."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        self._windows = next(data.val_windows(max(1, PROBE_TOKENS // data.context))).to(pl_module.device)
        self._look(pl_module)

    def on_step_end(self, trainer: pl.Trainer, module: WatchedModule, step: int) -> None:
        """Measure one more round."""
        self.losses.append(float(module.step_loss()))
        self._look(module)

    @torch.no_grad()
    def _look(self, module: Any) -> None:
        assert self._windows is not None
        was_training = module.training
        module.eval()  # no dropout
        # In float32 whatever the precision of the training, so that small changes do not drown in rounding.
        with torch.autocast(module.device.type, enabled=False), torch.compiler.set_stance("force_eager"):
            observe(module.model, self._windows[:, :-1], self.recorder)
        module.train(was_training)


def observe(model: Any, tokens_BT: torch.Tensor, recorder: taps.Recorder) -> None:
    """Show a recorder all features of a `GPT2`, including the logits: whole, and without padding tokens."""
    features_BTC = model.features(tokens_BT, recorder)
    logits_BTV = (features_BTC @ model.output_matrix.t())[..., : model.vocab_size]
    recorder.feature(taps.LOGITS, None, logits_BTV)


def measure(training: Training) -> Run:
    """Train, and measure features after every step for as long as all of them are finite."""
    config, probe = training.config, FeatureProbe()
    diverged: str | None = None
    try:
        result = train(config, callbacks=[probe], progress=False, keep=False)
    except Diverged as error:
        diverged = f"step {error.step}: {str(error).splitlines()[0].partition(' in step')[0]}"
    else:
        if not result.finished:  # a signal ended it between two steps
            raise KeyboardInterrupt
    rounds = probe.recorder.finite_rounds()
    if diverged is None and rounds < len(probe.losses) + 1:
        diverged = f"step {rounds}: a feature is no longer finite"
    losses = probe.losses[: max(0, rounds - 1)]
    assert config.model.vocab_size is not None
    return Run(
        parametrization=config.recipe.parametrization,
        shape=(config.model.width, config.model.depth),
        seed=config.seed,
        norms=_by_feature(probe.recorder.norms, rounds, training),
        changes=_by_feature(probe.recorder.changes, rounds, training),
        losses=losses,
        diverged=diverged or rise(losses, config.model.vocab_size),
    )


def _by_feature(curves: dict[str, list[float]], rounds: int, training: Training) -> dict[str, list[float]]:
    """Feature -> the largest of its taps in every round; six digits are plenty, and half the size of the file."""
    named = features(training.axis, training.config.model.depth) if rounds else {}
    return {
        name: [float(f"{max(values):.6g}") for values in zip(*(curves[tap][:rounds] for tap in at), strict=True)]
        for name, at in named.items()
    }


def rise(losses: list[float], vocab_size: int) -> str | None:
    """Find out whether training made the model worse, which features may not show.

    Args:
        losses: of the steps, nats per token; the first is that of the initialisation.
        vocab_size: V; a uniform guess has a loss of ln V.

    Returns:
        The first step whose loss exceeds that of the first step, and exceeds it or ln V by more than `ALLOWED_RISE`;
        None if there is none.
    """
    limit = max(losses[0], min(losses[0], math.log(vocab_size)) + ALLOWED_RISE) if losses else 0.0
    for step, loss in enumerate(losses[1:], start=2):
        if loss > limit:
            return (
                f"step {step}: the loss is {loss:.4g}; it was {losses[0]:.4g} in step 1, "
                f"and a uniform guess has {math.log(vocab_size):.4g}"
            )
    return None
