"""Our trainer: the same `train` that `mup-lightning train` calls, with all its callbacks."""

from __future__ import annotations

import tempfile
from typing import Any

from mup_lightning.config.schema import Config, DataConfig, ModelConfig, RunConfig, TrainerConfig
from mup_lightning.spectral.recipe import RecipeConfig
from tests.benchmarks.settings import Settings


def train(
    corpus: str,
    settings: dict[str, Any],
    feature_norms_every: int | None = None,
    spectral_norms_every: int | None = None,
) -> dict[str, Any]:
    """Train as the command line does.

    Args:
        corpus: a prepared corpus.
        settings: of `Settings`, as a dict.
        feature_norms_every: None for the default.
        spectral_norms_every: likewise.

    Returns:
        "step_seconds" of each timed step, "peak_mb" up to the last of them, "others" (see `StepClock`), "imports_mb",
        resident once everything is imported, and "whole_run_peak_mb", with validation and checkpoint at the end.
    """
    from mup_lightning.training.hardware import tune_allocator

    tune_allocator()
    import mup_lightning.training.train as training
    from tests.benchmarks.clock import StepClock
    from tests.benchmarks.memory import peak_mb, resident_mb

    s = Settings(**settings)
    imports_mb = resident_mb()
    with tempfile.TemporaryDirectory(prefix="mup-lightning-bench-") as runs, StepClock(s.warmup, s.steps) as clock:
        config = make_config(s, corpus, runs)
        if feature_norms_every is not None:
            config.trainer.feature_norms_every = feature_norms_every
        if spectral_norms_every is not None:
            config.trainer.spectral_norms_every = spectral_norms_every
        training.train(config)
    return {
        "step_seconds": clock.seconds,
        "peak_mb": clock.peak,
        "others": clock.others,
        "imports_mb": imports_mb,
        "whole_run_peak_mb": peak_mb(),
    }


def make_config(settings: Settings, corpus: str, runs: str) -> Config:
    """A run at these settings, with the defaults for all else.

    Args:
        settings: shape, batch and number of steps.
        corpus: a prepared corpus.
        runs: folder for the run.
    """
    return Config(
        model=ModelConfig(width=settings.width, depth=settings.depth, context=settings.context),
        recipe=RecipeConfig(optimizer="adamw", lr=2**-8),
        data=DataConfig(
            path=corpus, tokenizer=settings.tokenizer, batch_size=settings.batch, micro_batch=settings.batch
        ),
        trainer=TrainerConfig(max_steps=settings.warmup + settings.steps + 1, accelerator="cpu"),
        run=RunConfig(root=runs),
    )
