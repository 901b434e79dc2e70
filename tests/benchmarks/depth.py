"""Case `depth`: what a layer costs in a training step of a deep model against a shallow one.

With t(L) for a whole step (forward, backward, clipping, update) at L blocks, two figures are given:

    time per layer          t(L) / L, as one feels it. Embedding and loss are in it, so shallow models look expensive.
    time of a further layer (t(L) - t(1)) / (L - 1), the blocks alone: it would show anything that grows faster than L.

Subtracting t(1) is steadier than (t(2L) - t(L)) / L: t(1) is the smallest time there is, so little noise comes with it,
and it serves all depths.
"""

import time
from dataclasses import asdict
from typing import Any

import torch
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from mup_lightning.config.schema import VOCABULARIES, ModelConfig
from mup_lightning.model.gpt2 import build
from mup_lightning.optim.optimizer import build_optimizer
from mup_lightning.spectral.recipe import RecipeConfig, derive
from tests.benchmarks.harness import Case, Quantity, Settings, Turn
from tests.benchmarks.process import measure

SHALLOW = 4


class Stepper:
    """Training steps without a trainer: a model of any depth with its optimizer, on one batch of random tokens."""

    def __init__(self, settings: Settings, depth: int) -> None:
        tokens = VOCABULARIES[settings.tokenizer].size
        config = ModelConfig(width=settings.width, depth=depth, context=settings.context, vocab_size=tokens)
        recipe = derive(RecipeConfig(optimizer="adamw", lr=2**-8), config.width, depth)
        self.model = build(config, recipe, seed=0)
        self.optimizer = build_optimizer(dict(self.model.named_parameters()), self.model.parameter_info, recipe, {})
        self.window = torch.randint(tokens, (settings.batch, settings.context + 1))

    def milliseconds(self, steps: int) -> float:
        """Mean milliseconds of a step over so many steps."""
        begin = time.perf_counter()
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.model.loss(self.window).backward()
            parameters = list(self.model.parameters())
            clip_grads_with_norm_(parameters, 1.0, get_total_norm([p.grad for p in parameters if p.grad is not None]))
            self.optimizer.step()
        return 1e3 * (time.perf_counter() - begin) / steps


def take_turn(settings: dict[str, Any]) -> dict[str, float]:
    """One round in one process, all depths in turn: milliseconds of a step by contender."""
    from mup_lightning.training import tune_allocator

    tune_allocator()
    s = Settings(**settings)
    deep, shallow, again, one = _names(s)
    steppers = {deep: Stepper(s, s.depth), shallow: Stepper(s, SHALLOW), one: Stepper(s, 1)}
    for stepper in steppers.values():
        stepper.milliseconds(max(1, s.warmup))
    # As many layers are timed of the shallow models as of the deep one.
    many = s.steps * s.depth // SHALLOW
    order = [(shallow, shallow, many), (deep, deep, s.steps), (again, shallow, many), (one, one, many)]
    return {name: steppers[model].milliseconds(steps) for name, model, steps in order}


def layers(settings: Settings) -> Turn:
    """One round of the case."""
    (step,) = measure(take_turn, threads=settings.threads, settings=asdict(settings))
    return per_layer(step, settings)


def per_layer(step: dict[str, float], settings: Settings) -> Turn:
    """All figures from milliseconds of a step by contender; see the module's text."""
    deep, shallow, again, one = _names(settings)
    depths = {deep: settings.depth, shallow: SHALLOW, again: SHALLOW}
    return {
        "time of a step": step,
        "time per layer": {who: step[who] / depth for who, depth in depths.items()},
        "time of a further layer": {who: (step[who] - step[one]) / (depth - 1) for who, depth in depths.items()},
    }


def _names(settings: Settings) -> tuple[str, str, str, str]:
    """Deep, shallow, shallow again (the control), and a single layer."""
    return f"L = {settings.depth}", f"L = {SHALLOW}", f"L = {SHALLOW} again", "L = 1"


def _quantities(settings: Settings) -> list[Quantity]:
    deep, shallow, again, _ = _names(settings)
    return [
        Quantity("time of a step", "ms"),
        Quantity("time per layer", "ms", [(deep, shallow, "at most 1"), (shallow, again, "")]),
        Quantity("time of a further layer", "ms", [(deep, shallow, ""), (shallow, again, "")]),
    ]


DEPTH = Case(
    "what a layer costs in a deep model against a shallow one",
    Settings(width=64, depth=256, context=64, batch=8, tokenizer="bytes", rounds=5, steps=3, warmup=1),
    Settings(width=32, depth=12, context=16, batch=2, tokenizer="bytes", rounds=1, steps=1, warmup=1),
    layers,
    _quantities,
)
