"""Validation loss of a checkpoint on a corpus."""

from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from mup_lightning.config.schema import Config
from mup_lightning.data.sampler import validation_batches
from mup_lightning.data.shards import TokenStore, check_vocabulary
from mup_lightning.model.gpt2 import GPT2, build
from mup_lightning.spectral.recipe import derive
from mup_lightning.training import checkpoint as checkpoints
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


def load_model(checkpoint: checkpoints.Checkpoint, config: Config) -> GPT2:
    """The model of a checkpoint, in evaluation mode on the CPU, with the multipliers of its training."""
    recipe = derive(config.recipe, width=config.model.width, depth=config.model.depth)
    model = build(config.model, recipe, config.seed, device="meta")
    model.to_empty(device="cpu")
    Shards(checkpoint.path).load_weights(model)
    return model.eval()
