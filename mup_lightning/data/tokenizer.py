"""Text to token ids and back. tiktoken is imported only when the GPT-2 vocabulary is really loaded."""

from __future__ import annotations

import base64
import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import resources

import numpy as np

from mup_lightning.config.schema import EOT_IDS, VOCAB_SIZES, VOCABULARY_HASHES, TokenizerName
from mup_lightning.errors import UserError
from mup_lightning.typed import convert

RANK_FILE = "gpt2.tiktoken"
# GPT-2 cuts text into words before merging: contractions, then letters, digits or other signs with at most one
# leading space, then white space, of which the last character is left to the word after it.
WORDS = r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


class Tokenizer(ABC):
    """A vocabulary: documents to token ids and back.

    Attributes:
        name: as in data.tokenizer.
        vocab_size: number of tokens, the end-of-text token included.
        eot: id of the end-of-text token, which follows every document.
        fingerprint: sha256 of the vocabulary; corpora of equal fingerprints have interchangeable token ids.
    """

    name: TokenizerName

    def __init__(self) -> None:
        self.vocab_size, self.eot = VOCAB_SIZES[self.name], EOT_IDS[self.name]
        self.fingerprint = VOCABULARY_HASHES[self.name]

    def objection(self, text: str) -> str | None:
        """Why this vocabulary cannot hold `text`, in a few words; None where it can."""
        return None

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids (uint16, one 1-D array a text) of texts without an objection, without an end-of-text token."""

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids; incomplete UTF-8 becomes U+FFFD."""


def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer called `name`: "gpt2" or "bytes". Raises UserError for any other name."""
    convert(name, TokenizerName, "the tokenizer")
    return Gpt2Tokenizer() if name == "gpt2" else BytesTokenizer()


class Gpt2Tokenizer(Tokenizer):
    """The byte-pair encoding of GPT-2, built from the rank file in this package (no network, no cache folder).

    Text is only ever text: a literal "<|endoftext|>" inside a document becomes ordinary tokens, so that no document
    can forge the boundary between documents.

    Args:
        threads: that encode at once; None: one per available core.
    """

    name = "gpt2"

    def __init__(self, threads: int | None = None) -> None:
        super().__init__()
        import tiktoken

        data = resources.files("mup_lightning.data").joinpath("vocabulary", RANK_FILE).read_bytes()
        self.threads = threads or len(os.sched_getaffinity(0))
        self._encoding = tiktoken.Encoding(
            "mup_lightning_gpt2",
            pat_str=WORDS,
            mergeable_ranks=read_ranks(data, self.fingerprint),
            special_tokens={"<|endoftext|>": self.eot},
            explicit_n_vocab=self.vocab_size,
        )

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """See `Tokenizer`. Threads share the work: tiktoken releases Python's lock while it encodes."""
        # Several runs of texts a thread, so that one long text does not leave the other threads idle.
        size = max(1, len(texts) // (8 * self.threads))
        runs = [texts[i : i + size] for i in range(0, len(texts), size)]
        with ThreadPoolExecutor(self.threads) as pool:
            return [ids for run in pool.map(self._encode_run, runs) for ids in run]

    def _encode_run(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [self._encode(text) for text in texts]

    def _encode(self, text: str) -> np.ndarray:
        # No special token allowed and none forbidden: the meaning of `encode_ordinary`, but into an array (uint32).
        ids = self._encoding.encode_to_numpy(text, allowed_special=set(), disallowed_special=())
        if ids.size and int(ids.max()) >= self.eot:
            raise UserError(
                f"the gpt2 tokenizer gave the id {int(ids.max())}; expected ids below {self.eot}. "
                f"Install the version of tiktoken that pyproject.toml pins."
            )
        return ids.astype(np.uint16)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids; the end-of-text token reads <|endoftext|>."""
        return self._encoding.decode([int(i) for i in ids])


class BytesTokenizer(Tokenizer):
    """UTF-8 bytes as 256 tokens; byte 0 ends a document, so a document that itself holds a NUL is refused."""

    name = "bytes"

    def objection(self, text: str) -> str | None:
        """See `Tokenizer`."""
        return "NUL character" if "\0" in text else None

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """See `Tokenizer`."""
        return [np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.uint16) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of bytes; the end-of-text token stays a NUL."""
        return bytes(int(i) for i in ids).decode("utf-8", errors="replace")


def read_ranks(data: bytes, sha256: str) -> dict[bytes, int]:
    """Parse a rank file, each line a base64 token and its rank. Raises UserError where its sha256 is another."""
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise UserError(
            f"the GPT-2 vocabulary mup_lightning/data/vocabulary/{RANK_FILE} is damaged: its sha256 is {found}, "
            f"expected {sha256}. Install the package again."
        )
    pairs = (line.split() for line in data.splitlines() if line)
    return {base64.b64decode(token): int(rank) for token, rank in pairs}
