"""A finished checkpoint: its model, and its validation loss on a corpus."""

from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from mup_lightning.config.schema import Config
from mup_lightning.data.sampler import validation_batches
from mup_lightning.data.shards import TokenStore, check_vocabulary
from mup_lightning.data.tokenizer import Tokenizer
from mup_lightning.model.gpt2 import GPT2, build
from mup_lightning.training import checkpoint as checkpoints
from mup_lightning.training import hugging_face
from mup_lightning.training.module import loss_sums
from mup_lightning.training.tensors import Shards


def evaluate(path: Path, data: str | None = None, *, batch: int = 8, val_tokens: int | None = None) -> dict[str, Any]:
    """Validation loss of a checkpoint.

    Args:
        path: a checkpoint's folder, or a run's folder, whose newest checkpoint is meant.
        data: folder of a prepared corpus; None: the one that the run was trained on.
        batch: windows in one forward pass.
        val_tokens: only the first this many validation tokens; None: all.

    Returns:
        "checkpoint", "step", "data", "validation_loss" and "unigram_loss" (nats per token), "tokens" (predicted), and
        "run_val_tokens": how many validation tokens the run itself was measured on; None: all.

    Raises:
        UserError: the checkpoint is damaged, or the corpus has another vocabulary or is too short.
    """
    checkpoint = checkpoints.find(path)
    checkpoints.verify(checkpoint)
    config = Config.from_plain(checkpoint.config)
    folder = data or config.data.path
    store = TokenStore.open(folder, "val", verify=config.data.verify)
    check_vocabulary(store.manifest, config.data.tokenizer)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_model(checkpoint, config).to(device)
    batches = validation_batches(store, config.model.context, batch, val_tokens=val_tokens)
    total, tokens = loss_sums(model, tqdm(list(batches), desc="evaluating", disable=None), device).tolist()
    return {
        "checkpoint": str(checkpoint.path),
        "step": checkpoint.step,
        "data": str(folder),
        "validation_loss": total / tokens,
        "unigram_loss": store.manifest.unigram_loss,
        "tokens": int(tokens),
        "run_val_tokens": config.data.val_tokens,
    }


def open_model(path: Path) -> tuple[GPT2, Tokenizer]:
    """A model in evaluation mode on the CPU, and its tokenizer.

    Args:
        path: a run's folder, whose newest checkpoint is meant, a checkpoint's, or a Hugging Face GPT-2's or Llama's.

    Raises:
        UserError: it is none of them, damaged, or a Hugging Face model that has no counterpart here.
    """
    if (path / "config.json").is_file():
        return hugging_face.read(path)
    checkpoint = checkpoints.find(path)
    checkpoints.verify(checkpoint)
    config = Config.from_plain(checkpoint.config)
    return load_model(checkpoint, config), tokenizer_of(checkpoint, config)


def tokenizer_of(checkpoint: checkpoints.Checkpoint, config: Config) -> Tokenizer:
    """The tokenizer of a run, by its folder's copy, or else its corpus's; raises UserError where neither is there."""
    return Tokenizer.find(config.data.tokenizer, checkpoint.path.parent.parent, config.data.path)


def load_model(checkpoint: checkpoints.Checkpoint, config: Config) -> GPT2:
    """The model of a checkpoint, in evaluation mode on the CPU, with the multipliers of its training."""
    recipe = config.derive()
    model = build(config.model, recipe, config.seed, device="meta")
    model.to_empty(device="cpu")
    Shards(checkpoint.path).load_weights(model)
    return model.eval()
