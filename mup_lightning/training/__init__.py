"""Train a model, and use what was trained. What its verbs take is here, which imports no torch."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from mup_lightning.typed import Bound, NonNegativeFloat, NonNegativeInt, PositiveInt, Typed


@dataclass
class ExportSettings(Typed, prefix="--"):
    """Write the weights of a checkpoint, whatever strategy saved it, into a folder.

    Attributes:
        checkpoint: a checkpoint's folder, or a run's folder (its newest checkpoint).
        out: folder, which is made and must not exist.
        format: hf: a plain Hugging Face GPT-2, Llama, Qwen3 or Mixtral with multipliers folded in, and its tokenizer,
            for AutoModelForCausalLM.from_pretrained(FOLDER) and AutoTokenizer;
            plain: this package's own parameters in one safetensors file, with configuration and multipliers.
        verify: compare tokens, logits and greedily generated text with what transformers makes of the folder; where
            they differ, nothing is written.
    """

    checkpoint: Path
    out: Path
    format: Literal["hf", "plain"] = "hf"
    verify: bool = False


@dataclass
class GenerateSettings(Typed, prefix="--"):
    """Prints a prompt and what a model says after it, as it comes, up to the end of the text.

    A text may be longer than the model's context: when that is full, its older half is forgotten.

    Attributes:
        model: a run's folder (its newest checkpoint), a checkpoint's, or a Hugging Face model's.
        prompt: how the text begins; -: what stdin has.
        tokens: at most this many new ones.
        temperature: of the draws, which divides the logits; 0: always the likeliest token.
        top_k: draw from this many of the likeliest tokens; null: from all.
        top_p: draw from the fewest likeliest tokens that have this probability together.
        seed: of the draws.
    """

    model: Path
    prompt: str
    tokens: PositiveInt = 256
    temperature: NonNegativeFloat = 1.0
    top_k: PositiveInt | None = None
    top_p: Annotated[float, Bound("a number above 0 and up to 1", lambda value: 0 < value <= 1)] = 1.0
    seed: NonNegativeInt = 0


def tune_allocator() -> None:
    """Let torch's CPU allocator use huge pages: a GPT-2 vocabulary's logits are otherwise slow to map and unmap.

    To be called before torch allocates for the first time. A value that is set already stays.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
