"""What was trained, as it is used: a model in evaluation mode, its tokenizer, and what is known of both."""

from dataclasses import dataclass
from pathlib import Path

import torch

from mup_lightning.config.data import DataConfig
from mup_lightning.config.schema import Config
from mup_lightning.data.tokenizer import Tokenizer
from mup_lightning.model.gpt2 import GPT2, build
from mup_lightning.training import checkpoint as checkpoints
from mup_lightning.training import hugging_face
from mup_lightning.training.tensors import Shards


@dataclass(frozen=True)
class Finished:
    """A model in evaluation mode on the CPU, its tokenizer, its folder; of a run's also the step, and its data."""

    model: GPT2
    tokenizer: Tokenizer
    path: Path
    step: int | None = None
    data: DataConfig | None = None


def open_model(path: Path) -> Finished:
    """Read a model for use, from a run's folder (its newest checkpoint), a checkpoint's, or a Hugging Face model's.

    Raises UserError where it is none of them, damaged, or a Hugging Face model that has no counterpart here.
    """
    if (path / "config.json").is_file():
        return Finished(*hugging_face.read(path), path)
    checkpoint = checkpoints.find(path)
    checkpoints.verify(checkpoint)
    config = Config.from_plain(checkpoint.config)
    tokenizer = tokenizer_of(checkpoint, config)
    return Finished(load_model(checkpoint, config), tokenizer, checkpoint.path, checkpoint.step, config.data)


def tokenizer_of(checkpoint: checkpoints.Checkpoint, config: Config) -> Tokenizer:
    """The tokenizer of a run, by its folder's copy, or else its corpus's; raises UserError where neither is there."""
    return Tokenizer.find(config.data.tokenizer, checkpoint.path.parent.parent, *config.data.sources)


def load_model(checkpoint: checkpoints.Checkpoint, config: Config) -> GPT2:
    """The model of a checkpoint, in evaluation mode on the CPU, with the multipliers of its training."""
    recipe = config.derive()
    model = build(config.model, recipe, config.seed, device="meta")
    model.to_empty(device="cpu")
    Shards(checkpoint.path).load_weights(model)
    return model.eval()


def best_device() -> torch.device:
    """A GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
