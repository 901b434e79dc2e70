"""Text to token ids and back. tiktoken is imported only when the GPT-2 vocabulary is really loaded."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from typing import Protocol

import numpy as np

from mup_lightning.config.schema import (
    EOT_IDS,
    VOCAB_SIZES,
    VOCABULARY_HASHES,
    check_tokenizer_name,
    vocab_size,
)
from mup_lightning.errors import UserError

__all__ = ["BytesTokenizer", "Gpt2Tokenizer", "Tokenizer", "load_tokenizer", "vocab_size"]

RANK_FILE = "gpt2.tiktoken"
# GPT-2 cuts text into words before merging: contractions, then letters, digits or other signs with at most one
# leading space, then white space, the last blank of a run being left to the word after it.
WORDS = r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


class Tokenizer(Protocol):
    """A vocabulary: documents to token ids and back."""

    name: str
    vocab_size: int
    eot: int
    fingerprint: str
    """sha256 of the vocabulary: corpora of equal fingerprints have exchangeable token ids."""

    def objection(self, text: str) -> str | None:
        """Why this vocabulary cannot hold `text`, in a few words, or None where it can."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids (uint16, one 1-D array a text), without an end-of-text symbol."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids; incomplete UTF-8 becomes U+FFFD."""
        ...


def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer called `name`: "gpt2" or "bytes". Raises UserError for any other name."""
    check_tokenizer_name(name, key="the tokenizer")
    return Gpt2Tokenizer() if name == "gpt2" else BytesTokenizer()


class Gpt2Tokenizer:
    """The byte-pair encoding of GPT-2, built from the rank file in this package (no network, no cache folder).

    Text is only ever text: a literal "<|endoftext|>" inside a document becomes ordinary tokens, so that no document
    can forge the boundary between documents.
    """

    name = "gpt2"

    def __init__(self, threads: int | None = None) -> None:
        import tiktoken

        data = resources.files("mup_lightning.data").joinpath("vocabulary", RANK_FILE).read_bytes()
        self.vocab_size = VOCAB_SIZES["gpt2"]
        self.eot = EOT_IDS["gpt2"]
        self.fingerprint = VOCABULARY_HASHES["gpt2"]
        self.threads = threads or len(os.sched_getaffinity(0))
        self._encoding = tiktoken.Encoding(
            "mup_lightning_gpt2",
            pat_str=WORDS,
            mergeable_ranks=read_ranks(data, self.fingerprint),
            special_tokens={"<|endoftext|>": self.eot},
            explicit_n_vocab=self.vocab_size,
        )

    def objection(self, text: str) -> str | None:
        """None: every string of Unicode text can be encoded."""
        return None

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids (uint16) of each text. Threads share the work: tiktoken releases Python's lock while encoding."""
        # Several runs of texts a thread, so that one long text does not leave the other threads idle.
        size = max(1, len(texts) // (8 * self.threads))
        runs = [texts[i : i + size] for i in range(0, len(texts), size)]
        if len(runs) < 2 or self.threads == 1:
            return [ids for run in runs for ids in self._encode_run(run)]
        with ThreadPoolExecutor(self.threads) as pool:
            return [ids for run in pool.map(self._encode_run, runs) for ids in run]

    def _encode_run(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [self._encode(text) for text in texts]

    def _encode(self, text: str) -> np.ndarray:
        # No special token allowed and none forbidden: the meaning of `encode_ordinary`, but into an array (uint32).
        ids = self._encoding.encode_to_numpy(text, allowed_special=set(), disallowed_special=())
        if ids.size and int(ids.max()) >= self.eot:
            raise UserError(
                f"the gpt2 tokenizer gave the id {int(ids.max())}, but text has ids below {self.eot}. "
                f"The vocabulary does not fit the installed tiktoken; install the version pinned in pyproject.toml."
            )
        return ids.astype(np.uint16)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids; the end-of-text symbol reads <|endoftext|>."""
        return self._encoding.decode([int(i) for i in ids])


class BytesTokenizer:
    """UTF-8 bytes as 256 symbols; byte 0 ends a document, so a document that itself holds a NUL is refused."""

    name = "bytes"

    def __init__(self) -> None:
        self.vocab_size = VOCAB_SIZES["bytes"]
        self.eot = EOT_IDS["bytes"]
        self.fingerprint = VOCABULARY_HASHES["bytes"]

    def objection(self, text: str) -> str | None:
        """The reason against a text with a NUL in it, None for any other."""
        return "NUL character" if "\0" in text else None

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The UTF-8 bytes of each text as uint16. Raises UserError where a text holds a NUL."""
        for index, text in enumerate(texts):
            if "\0" in text:
                raise UserError(
                    f"text {index} of the batch has a NUL character at position {text.index(chr(0))}, and the bytes "
                    f"tokenizer keeps byte 0 for the end of a document. Remove it from the text, or use gpt2."
                )
        return [np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.uint16) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of bytes; the end-of-text symbol stays a NUL."""
        return bytes(int(i) for i in ids).decode("utf-8", errors="replace")


def read_ranks(data: bytes, sha256: str) -> dict[bytes, int]:
    """Parse a rank file (a line is a base64 token and its rank), having compared its hash. Raises UserError."""
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise UserError(
            f"the GPT-2 vocabulary mup_lightning/data/vocabulary/{RANK_FILE} is damaged: its sha256 is {found}, "
            f"expected {sha256}. Install the package again."
        )
    try:
        pairs = (line.split() for line in data.splitlines() if line)
        return {base64.b64decode(token): int(rank) for token, rank in pairs}
    except (ValueError, binascii.Error) as error:
        raise UserError(f"the vocabulary file {RANK_FILE} has a line that is not 'base64 rank': {error}") from error
