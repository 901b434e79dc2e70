"""Small models for tests: 101 tokens, which are padded to 128, and weights that make every term show."""

import torch

from mup_lightning.config.model import ModelConfig
from mup_lightning.model.gpt2 import build
from mup_lightning.spectral.recipe import RecipeConfig, derive

TINY = {"width": 32, "depth": 3, "heads": 4, "context": 16, "vocab_size": 101}
MULTIPLIED = RecipeConfig(base_width=8, base_depth=1, input_multiplier=3.0, init_std=0.2)


def make(recipe=None, seed=0, **switches):
    """A model; without a recipe all its multipliers are 1."""
    config = ModelConfig(**{**TINY, **switches})
    plain = RecipeConfig(init_std=0.2, base_width=config.width, base_depth=config.depth)
    sides = dict.fromkeys(("kv", "head", "experts"), 1.0)
    dims = (2.0, 8.0) if recipe else (1.0, 1.0)
    return build(config, derive(recipe or plain, config.width, config.depth, dims, sides), seed)


def shaken(recipe=None, **switches):
    """A model in evaluation mode, see `shake`."""
    return shake(make(recipe, **switches).eval())


@torch.no_grad()
def shake(model):
    """Random values everywhere, also in biases and gains, so that no term of a comparison is trivial."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def windows(rows=2, length=17):
    """Tokens, of which each but the first is a target."""
    return torch.randint(TINY["vocab_size"], (rows, length), generator=torch.Generator().manual_seed(2))
