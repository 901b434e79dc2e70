"""What every run measures and watches for."""

from pathlib import Path

import lightning.pytorch as pl

from mup_lightning.callbacks.dashboard import Dashboard, pages, panels
from mup_lightning.callbacks.loss_checks import BesideForecast, Divergence
from mup_lightning.callbacks.losses import Losses, Validation
from mup_lightning.callbacks.noise_scale import NoiseScale
from mup_lightning.callbacks.norms import FeatureNorms, GradientNorms, UpdateCheck
from mup_lightning.callbacks.spectral_monitor import SpectralNorms
from mup_lightning.callbacks.step import Stopping
from mup_lightning.callbacks.throughput import Throughput
from mup_lightning.config.forecast import Forecast
from mup_lightning.config.schema import Config
from mup_lightning.model.gpt2 import GPT2


def default_callbacks(
    config: Config,
    model: GPT2,
    throughput: Throughput,
    validation: Validation,
    noise: NoiseScale,
    first_step: int,
    logged: set[str] | None,
    corpus: str,
    *,
    keep: bool,
) -> list[pl.Callback]:
    """The callbacks of every run, in the order in which they run; `model` is not wrapped by a strategy yet.

    `first_step` is that of the checkpoint which the run continues from, and `logged` are the tags of its points that
    are in the logs already; None: there are no logs yet. `corpus` is its hash; `keep` says whether logs are written.
    Raises UserError where run.forecast is not of this run.
    """
    trainer, k, corpora = config.trainer, config.recipe.branch_depth, validation.corpora
    losses = Losses(trainer.log_every, trainer.checkpoint_every if keep else 0, throughput.tokens_per_step, corpora)
    features, spectral = (
        first_step if any(tag.startswith(group) for tag in logged or ()) else None
        for group in ("features/", "spectral/")
    )
    found: list[pl.Callback] = [Stopping(), throughput, losses, validation, noise]
    found += [GradientNorms(trainer.log_every)] * keep
    if trainer.spike_sigmas:
        found.append(Divergence(losses, trainer))
    if every := trainer.feature_norms_every:
        found.append(FeatureNorms(every, features))
    if every := trainer.spectral_norms_every:
        found.append(SpectralNorms(every, model, k, spectral))
    if every := trainer.update_check_every:
        found.append(UpdateCheck(every))
    if config.run.forecast:
        forecast = Forecast.read(Path(config.run.forecast))
        forecast.refuse_other(config, sum(info.numel for info in model.parameter_info.values()), corpus)
        found.append(BesideForecast(forecast, losses, validation, trainer))
    if keep and logged is None:
        more = {"forecast": config.run.forecast is not None, "mixed": len(corpora.shares) > 1}
        layout = panels(trainer, k, **more, experts=config.model.experts is not None)
        found.append(Dashboard(layout, pages(config, model)))
    return found
