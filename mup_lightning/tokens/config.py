"""What the data part of a recipe says. Light on purpose: neither torch, datasets nor tiktoken is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mup_lightning.errors import UserError

TokenizerName = Literal["gpt2", "bytes"]

VOCAB_SIZES: dict[str, int] = {"gpt2": 50257, "bytes": 256}
"""Symbols of each vocabulary, the end-of-text symbol included."""

EOT_IDS: dict[str, int] = {"gpt2": 50256, "bytes": 0}
"""The end-of-text symbol that follows every document."""

VOCABULARY_HASHES: dict[str, str] = {
    "gpt2": "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930",
    "bytes": "40aff2e9d2d8922e47afd4648e6967497158785fbd1da870e7110266bf944880",
}
"""sha256 of each vocabulary: of the rank file for gpt2, of the 256 byte values in order for bytes."""


def vocab_size(tokenizer: str) -> int:
    """Symbols of the named vocabulary (50257 for gpt2), without loading it. Raises UserError for an unknown name."""
    check_tokenizer_name(tokenizer)
    return VOCAB_SIZES[tokenizer]


def check_tokenizer_name(name: str, key: str = "data.tokenizer") -> None:
    """Raise UserError, naming `key`, unless `name` is a tokenizer we have."""
    if name not in VOCAB_SIZES:
        raise UserError(f"{key} is {name!r}, which is no tokenizer of ours. Choose one of: {', '.join(VOCAB_SIZES)}.")


@dataclass
class DataConfig:
    """Which corpus to read and how to batch it.

    Args:
        path: Folder of a prepared corpus (see `mup-lightning data prepare`).
        tokenizer: Vocabulary the corpus was prepared with: gpt2 (50257 symbols) or bytes (256 symbols).
        batch_size: Sequences in one optimizer step, over all processes and accumulation steps.
        micro_batch: Sequences in one forward pass of one process.
        workers: Processes that read batches ahead; 0 reads in the training process, which is fastest on few cores.
        val_tokens: Use only the first this many validation tokens (whole windows); null means all of them.
        verify: Compare the sha256 of every shard with the manifest before training starts.
    """

    path: str = "data/prepared/austen-gpt2"
    tokenizer: TokenizerName = "gpt2"
    batch_size: int = 240
    micro_batch: int = 8
    workers: int = 0
    val_tokens: int | None = None
    verify: bool = True

    def __post_init__(self) -> None:
        check_tokenizer_name(self.tokenizer)
        if not self.path:
            raise UserError("data.path is empty. Name the folder of a prepared corpus, e.g. data/prepared/austen-gpt2.")
        _at_least("data.batch_size", self.batch_size, 1)
        _at_least("data.micro_batch", self.micro_batch, 1)
        _at_least("data.workers", self.workers, 0)
        if self.val_tokens is not None:
            _at_least("data.val_tokens", self.val_tokens, 1)


def _at_least(key: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{key} is {value!r}; expected a whole number of at least {least}.")
