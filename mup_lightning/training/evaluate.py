"""How good a finished model is: its loss on a corpus, per token and per byte, or its answers to questions."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from mup_lightning.callbacks.losses import bits_per_byte
from mup_lightning.config import imported
from mup_lightning.config.data import VOCABULARIES, DataConfig
from mup_lightning.config.model import ModelConfig
from mup_lightning.config.schema import Config
from mup_lightning.data.sampler import validation_batches
from mup_lightning.data.shards import TokenStore, check_vocabulary
from mup_lightning.data.tokenizer import Tokenizer
from mup_lightning.errors import UserError
from mup_lightning.model.gpt2 import GPT2, build
from mup_lightning.spectral.base import RecipeConfig
from mup_lightning.spectral.recipe import derive
from mup_lightning.training import checkpoint as checkpoints
from mup_lightning.training import hugging_face, questions
from mup_lightning.training.finished import load_model
from mup_lightning.training.module import loss_sums


@dataclass(frozen=True)
class Subject:
    """A model to be measured: where it is, its step and data (None: it does not say), its weights, its tokenizer."""

    path: Path
    step: int | None
    data: DataConfig | None
    model: GPT2
    tokenizer: Tokenizer

    @classmethod
    def open(cls, path: Path) -> "Subject":
        """Read a checkpoint, a run's newest one, or the folder of a Hugging Face GPT-2 or Llama, such as an export.

        Raises UserError where it is none of these, is damaged, or has a vocabulary that is not known here.
        """
        if not (path / "config.json").is_file():
            checkpoint = checkpoints.find(path)
            checkpoints.verify(checkpoint)
            config = Config.from_plain(checkpoint.config)
            tokenizer = Tokenizer.find(config.data.tokenizer, checkpoint.path.parents[1], config.data.path)
            return cls(checkpoint.path, checkpoint.step, config.data, load_model(checkpoint, config), tokenizer)
        shape = imported.settings(path)
        known = {vocabulary.size: name for name, vocabulary in VOCABULARIES.items()}
        if shape["vocab_size"] not in known:
            texts = (f"{size} ({name})" for size, name in known.items())
            raise UserError(f"the model in {path} has {shape['vocab_size']} tokens; expected {' or '.join(texts)}")
        own = ModelConfig(**shape)
        recipe = derive(RecipeConfig(parametrization="sp"), own.width, own.depth)
        model = build(own, recipe, 0, device="meta").to_empty(device="cpu")
        for parameter in model.parameters():  # the vocabulary's padding is in no file
            parameter.data.zero_()
        hugging_face.load(model, path)
        return cls(path, None, None, model.eval(), Tokenizer(known[shape["vocab_size"]]))

    def context(self, asked: int | None) -> int:
        """Tokens of a window: as many as the model was trained on, or `asked`. Raises UserError for more."""
        own = self.model.config.context
        if asked and asked > own:
            raise UserError(f"--context is {asked}, but the model in {self.path} knows {own} positions; expected fewer")
        return asked or own

    @property
    def name(self) -> dict[str, Any]:
        """ "checkpoint" and "step", for results."""
        return {"checkpoint": str(self.path), "step": self.step}


def evaluate(
    path: Path,
    data: str | None = None,
    *,
    batch: int = 8,
    val_tokens: int | None = None,
    context: int | None = None,
) -> dict[str, Any]:
    """Validation loss of a model.

    Args:
        path: a checkpoint's folder, a run's folder, whose newest checkpoint is meant, or a Hugging Face model's.
        data: folder of a prepared corpus; None: the one that the run was trained on.
        batch: windows in one forward pass.
        val_tokens: only the first this many validation tokens; None: all.
        context: tokens of a window; None: as in training.

    Returns:
        "checkpoint", "step", "data", "validation_loss" and "unigram_loss" (nats per token), "perplexity",
        "bits_per_byte", "tokens" (predicted), "bytes" (of their text), and "run_val_tokens": how many validation tokens
        the run itself was measured on; None: all.

    Raises:
        UserError: see `Subject.open`; or the corpus is not named, has another vocabulary, or is too short.
    """
    subject = Subject.open(path)
    own = subject.data
    if data is None and own is None:
        raise UserError(f"{path} does not say what it was trained on; name a prepared corpus: --data FOLDER")
    folder = data or own.path  # type: ignore[union-attr]
    store = TokenStore.open(folder, "val", verify=own is None or own.verify)
    check_vocabulary(store.manifest, subject.tokenizer.reference)
    device = best_device()
    batches = validation_batches(store, subject.context(context), batch, val_tokens=val_tokens)
    token_bytes = torch.from_numpy(subject.tokenizer.lengths)
    shown = tqdm(list(batches), desc="evaluating", disable=None)
    nats, tokens, text = loss_sums(subject.model.to(device), shown, token_bytes, device).tolist()
    loss = nats / tokens
    return subject.name | {
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
    """Accuracy of a model in multiple choice.

    Args:
        path: as in `evaluate`.
        task: a JSONL file; see `questions.read`.
        batch: choices in one forward pass.
        context: most tokens that one forward pass sees; None: as in training.

    Returns:
        "checkpoint", "step", "task", and those of `questions.accuracy`.

    Raises:
        UserError: see `Subject.open`, `questions.read` and `questions.accuracy`.
    """
    subject = Subject.open(path)
    asked = questions.read(task, subject.tokenizer)
    model, context = subject.model.to(best_device()), subject.context(context)
    found = questions.accuracy(model, subject.tokenizer, asked, batch, context)
    return subject.name | {"task": str(task), **found}


def best_device() -> torch.device:
    """A GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
