"""Training steps of a model of any depth, without a trainer: forward, backward, clipping, update."""

from __future__ import annotations

import time

import torch
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from mup_lightning.config.optimizers import RuleOptions
from mup_lightning.config.schema import ModelConfig, vocab_size
from mup_lightning.model.gpt2 import build
from mup_lightning.optim.groups import make_groups
from mup_lightning.optim.optimizer import HybridOptimizer
from mup_lightning.spectral.recipe import RecipeConfig, derive
from tests.benchmarks.settings import Settings


class Stepper:
    """A model with its optimizer, on one batch of random tokens.

    Args:
        settings: all but the depth.
        depth: blocks.
    """

    def __init__(self, settings: Settings, depth: int) -> None:
        symbols = vocab_size(settings.tokenizer)
        config = ModelConfig(width=settings.width, depth=depth, context=settings.context, vocab_size=symbols)
        recipe = derive(RecipeConfig(optimizer="adamw", lr=2**-8), config.width, depth)
        self.model = build(config, recipe, seed=0)
        groups = make_groups(dict(self.model.named_parameters()), self.model.parameter_info, recipe, RuleOptions())
        self.optimizer = HybridOptimizer(groups)
        self.window = torch.randint(symbols, (settings.batch, settings.context + 1))

    def seconds(self, steps: int) -> float:
        """Mean seconds of a step over so many steps."""
        begin = time.perf_counter()
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.model.loss(self.window).backward()
            parameters = list(self.model.parameters())
            clip_grads_with_norm_(parameters, 1.0, get_total_norm([p.grad for p in parameters if p.grad is not None]))
            self.optimizer.step()
        return (time.perf_counter() - begin) / steps
