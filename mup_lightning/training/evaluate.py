"""Validation loss of a model on windows of tokens, and of a checkpoint on a corpus."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from mup_lightning.config.schema import Config
from mup_lightning.data.sampler import validation_batches
from mup_lightning.data.shards import TokenStore, check_vocabulary
from mup_lightning.errors import UserError
from mup_lightning.model.gpt2 import GPT2, build
from mup_lightning.spectral.recipe import derive
from mup_lightning.training import checkpoint as checkpoints
from mup_lightning.training.tensors import Shards


@torch.no_grad()
def loss_sums(
    model: GPT2,
    batches: Iterable[torch.Tensor],
    device: torch.device,
    loss_of: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Add up the next-token cross-entropy over batches of windows, without dropout.

    Args:
        model: left in the mode (training or not) that it came in.
        batches: (b, T + 1) int64 windows; b may be 0.
        device: where the model is.
        loss_of: mean loss of a batch; None: the model's own. A strategy that parts the weights wants to be asked.

    Returns:
        (2,) float64: the sum of the losses in nats, and the number of tokens predicted. Ready to be added up over
        processes.
    """
    was_training = model.training
    model.eval()
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    for window_BT1 in batches:
        tokens = window_BT1.shape[0] * (window_BT1.shape[1] - 1)
        loss = (loss_of or model.loss)(window_BT1.to(device))
        if tokens:  # a process that has run out of windows joins in the forward pass only
            sums[0] += loss.double() * tokens
            sums[1] += tokens
    model.train(was_training)
    return sums


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
        UserError: the checkpoint is damaged or the corpus is of another vocabulary or too short.
    """
    for option, value in (("--batch", batch), ("--val-tokens", val_tokens)):
        if value is not None and value < 1:
            raise UserError(f"{option} is {value}; expected a whole number of at least 1")
    checkpoint = find(path)
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


def find(path: Path) -> checkpoints.Checkpoint:
    """The checkpoint of a checkpoint's folder, or the newest one of a run's folder.

    Raises:
        UserError: there is none.
    """
    return checkpoints.newest(path / "checkpoints") if (path / "checkpoints").is_dir() else checkpoints.read(path)


def load_model(checkpoint: checkpoints.Checkpoint, config: Config) -> GPT2:
    """The model of a checkpoint, in evaluation mode on the CPU; multipliers as in training."""
    recipe = derive(config.recipe, width=config.model.width, depth=config.model.depth)
    model = build(config.model, recipe, config.seed, device="meta")
    model.to_empty(device="cpu")
    Shards(checkpoint.path).load_weights(model)
    return model.eval()
