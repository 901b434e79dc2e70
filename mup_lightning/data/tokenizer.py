"""Text to token ids and back. tiktoken is imported only when the GPT-2 vocabulary is loaded."""

import base64
import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from importlib import resources
from typing import Any

import numpy as np

from mup_lightning.config.schema import VOCABULARIES, TokenizerName
from mup_lightning.errors import UserError

RANK_FILE = "gpt2.tiktoken"
# GPT-2 cuts text into words before merging: contractions, then letters, digits or other signs with at most one
# leading space, then white space, of which the last character is left to the word after it.
WORDS = r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
ALL = r"(?s:.)+"  # the whole text as one word
# tiktoken's regex engine fails in longer runs of white space: 1,000,000 characters, which it walks back over to look
# ahead. Other runs have no limit. The characters are those of \s there; Python's \s has some more.
LONGEST_BLANK = 500_000
BLANK = r"[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"


class Tokenizer:
    """A vocabulary: gpt2 is the byte-pair encoding of GPT-2, bytes has the 256 bytes of UTF-8 as its tokens.

    Text is only ever text, so that no document can forge the boundary between documents: under gpt2 a literal
    "<|endoftext|>" becomes ordinary tokens; under bytes, where byte 0 ends a document, a text with a NUL is refused.

    Raises:
        UserError: the vocabulary's file is damaged.
    """

    def __init__(self, name: TokenizerName) -> None:
        self.eot = VOCABULARIES[name].eot
        self._gpt2: Any = _gpt2(WORDS) if name == "gpt2" else None

    def objection(self, text: str) -> str | None:
        """Why this vocabulary cannot hold `text`, in a few words; None where it can."""
        return "NUL character" if self._gpt2 is None and "\0" in text else None

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids of texts without an objection: a 1-D uint16 array per text, without the end-of-text token.

        All cores share the work: tiktoken releases Python's lock while it encodes.
        """
        threads = len(os.sched_getaffinity(0))
        # Several runs of texts a thread, so that one long text does not leave the other threads idle.
        size = max(1, len(texts) // (8 * threads))
        runs = [texts[i : i + size] for i in range(0, len(texts), size)]
        with ThreadPoolExecutor(threads) as pool:
            return [ids for run in pool.map(lambda run: [self._encode(text) for text in run], runs) for ids in run]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids, the end-of-text token as <|endoftext|> or NUL; incomplete UTF-8 becomes U+FFFD."""
        whole = [int(i) for i in ids]
        return self._gpt2.decode(whole) if self._gpt2 else bytes(whole).decode("utf-8", errors="replace")

    def _encode(self, text: str) -> np.ndarray:
        if self._gpt2 is None:
            return np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.uint16)
        if len(text) <= LONGEST_BLANK:
            return _ids(self._gpt2, text)
        # A word ends before white space. Of a run, all but the last character is one word; at the end of the text, all.
        parts, done = [], 0
        for run in re.finditer(f"{BLANK}{{{LONGEST_BLANK},}}", text):
            end = run.end() - (run.end() < len(text))
            parts += [_ids(self._gpt2, text[done : run.start()]), _ids(self._one_word, text[run.start() : end])]
            done = end
        return np.concatenate([*parts, _ids(self._gpt2, text[done:])])

    @cached_property
    def _one_word(self) -> Any:
        return _gpt2(ALL)


def _ids(encoding: Any, text: str) -> np.ndarray:
    # No special token allowed and none forbidden: the meaning of `encode_ordinary`, but into an array (uint32).
    return encoding.encode_to_numpy(text, allowed_special=set(), disallowed_special=()).astype(np.uint16)


def _gpt2(pattern: str) -> Any:
    """tiktoken's encoding, built from the rank file in this package (no network, no cache folder).

    `pattern` cuts the text into the words that are then merged.
    """
    import tiktoken

    vocabulary = VOCABULARIES["gpt2"]
    data = resources.files("mup_lightning.data").joinpath("vocabulary", RANK_FILE).read_bytes()
    return tiktoken.Encoding(
        "mup_lightning_gpt2",
        pat_str=pattern,
        mergeable_ranks=read_ranks(data, vocabulary.sha256),
        special_tokens={"<|endoftext|>": vocabulary.eot},
        explicit_n_vocab=vocabulary.size,
    )


def read_ranks(data: bytes, sha256: str) -> dict[bytes, int]:
    """Parse a rank file, each line a base64 token and its rank. Raises UserError if its sha256 differs."""
    if (found := hashlib.sha256(data).hexdigest()) != sha256:
        raise UserError(f"{RANK_FILE} is damaged: its sha256 is {found}, expected {sha256}; install the package again")
    pairs = (line.split() for line in data.splitlines() if line)
    return {base64.b64decode(token): int(rank) for token, rank in pairs}
