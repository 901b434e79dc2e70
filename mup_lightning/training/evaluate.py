"""How good a finished model is: its loss on a corpus, per token and per byte, or its answers to questions."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from mup_lightning.callbacks.losses import bits_per_byte
from mup_lightning.data.sampler import validation_batches
from mup_lightning.data.shards import TokenStore, reference
from mup_lightning.data.tokenizer import Tokenizer
from mup_lightning.data.tokenizer_json import SAMPLE
from mup_lightning.errors import UserError
from mup_lightning.training import questions
from mup_lightning.training.finished import Finished, best_device, open_model
from mup_lightning.training.module import loss_sums


def evaluate(
    path: Path, data: str | None = None, *, batch: int = 8, val_tokens: int | None = None, context: int | None = None
) -> dict[str, Any]:
    """Validation loss of a model; see `EvaluateSettings` for the arguments.

    Returns:
        "checkpoint", "step", "data", "validation_loss" and "unigram_loss" (nats per token), "perplexity",
        "bits_per_byte", "tokens" (predicted), "bytes" (of their text), and "run_val_tokens": how many validation tokens
        the run itself was measured on; None: all.

    Raises:
        UserError: see `open_model`; or the corpus is not named, has another vocabulary, or is too short.
    """
    subject = open_model(path)
    own = subject.data
    if data is None and (own is None or len(own.sources) > 1):
        what = f"was trained on {own.said}" if own else "does not say what it was trained on"
        raise UserError(f"{path} {what}; name a prepared corpus: --data FOLDER")
    folder = data or next(iter(own.sources))  # type: ignore[union-attr]
    store = TokenStore.open(folder, "val", verify=own is None or own.verify)
    ours, name = subject.tokenizer, reference(store.manifest.tokenizer, store.manifest.vocab_hash)
    theirs, device = Tokenizer.find(name, folder), best_device()
    # The same vocabulary may come in several files.
    if theirs.reference != ours.reference and not (
        np.array_equal(theirs.lengths, ours.lengths) and np.array_equal(theirs.encode(SAMPLE), ours.encode(SAMPLE))
    ):
        raise UserError(
            f"{folder} has another vocabulary, {name} ({theirs.vocab_size} tokens), than the model in {subject.path}, "
            f"{ours.reference} ({ours.vocab_size} tokens); prepare the corpus with that: --tokenizer"
        )
    batches = validation_batches(store, _context(subject, context), batch, val_tokens=val_tokens)
    shown = tqdm(list(batches), desc="evaluating", disable=None)
    nats, tokens, text = loss_sums(subject.model.to(device), shown, torch.from_numpy(theirs.lengths), device).tolist()
    loss = nats / tokens
    return {
        "checkpoint": str(subject.path),
        "step": subject.step,
        "data": str(folder),
        "validation_loss": loss,
        "unigram_loss": store.manifest.unigram_loss,
        "perplexity": math.exp(loss) if loss < 700 else math.inf,
        "bits_per_byte": bits_per_byte(nats, text),
        "tokens": int(tokens),
        "bytes": int(text),
        "run_val_tokens": own and own.val_tokens,
    }


def answer(path: Path, task: Path, *, batch: int = 8, context: int | None = None) -> dict[str, Any]:
    """Accuracy of a model in multiple choice, as `questions.accuracy` returns it, with "checkpoint", "step", "task".

    Raises UserError as `open_model`, `questions.read` and `questions.accuracy` do.
    """
    subject = open_model(path)
    asked = questions.read(task, subject.tokenizer)
    model, context = subject.model.to(best_device()), _context(subject, context)
    found = questions.accuracy(model, subject.tokenizer, asked, batch, context)
    return {"checkpoint": str(subject.path), "step": subject.step, "task": str(task), **found}


def _context(subject: Finished, asked: int | None) -> int:
    """Tokens of a window: as many as the model was trained on, or `asked`. Raises UserError for more."""
    own = subject.model.config.context
    if asked and asked > own:
        raise UserError(f"--context is {asked}; expected at most {own}, that of the model in {subject.path}")
    return asked or own
