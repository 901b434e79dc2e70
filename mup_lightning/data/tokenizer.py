"""Text to token ids and back. tiktoken and tokenizers are imported only when a vocabulary of theirs is used."""

import json
import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache, cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from mup_lightning.config.data import VOCABULARIES, Vocabulary, dtype_of, reference
from mup_lightning.data.encodings import DESCRIPTION, Description, describe, end_of, read_hugging_face, read_ranks
from mup_lightning.errors import UserError

# GPT-2 cuts text into words before merging: contractions, then letters, digits or other signs with at most one
# leading space, then white space, of which the last character is left to the word after it.
WORDS = r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
ALL = r"(?s:.)+"  # the whole text as one word
# tiktoken's regex engine fails in longer runs of white space: 1,000,000 characters, which it walks back over to look
# ahead. Other runs have no limit. The characters are those of \s there; Python's \s has some more.
LONGEST_BLANK = 500_000
BLANK = r"[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"


class Tokenizer:
    """A vocabulary: gpt2 is the byte-pair encoding of GPT-2, bytes the 256 bytes of UTF-8; others come from files.

    Text is only ever text, so that no document can forge the boundary between documents: a literal "<|endoftext|>"
    becomes ordinary tokens; under bytes, where byte 0 ends a document, a text with a NUL is refused.

    `source` is gpt2, bytes, or a file that `encodings.describe` understands; `name` is gpt2, bytes, or that of the
    `description`, which is None for those that come with the package. Raises UserError where the file is missing or
    damaged, or its library is not installed.
    """

    def __init__(self, source: str | Path) -> None:
        self.source, self.name = source, str(source)
        self.description: Description | None = None
        if self.name not in VOCABULARIES:
            self.description = describe(source)
            self.name = str(self.description.name) if self.description else "gpt2"

    @classmethod
    def find(cls, wanted: str, *folders: str | Path) -> "Tokenizer":
        """The vocabulary that data.tokenizer names, from the first of the folders (a run's, a corpus's) that has it.

        Raises UserError where none of them does.
        """
        if wanted in VOCABULARIES:
            return cls(wanted)
        for folder in map(Path, folders):
            if (folder / DESCRIPTION).is_file() and (found := cls(folder / DESCRIPTION)).reference == wanted:
                return found
        raise UserError(
            f"the tokenizer {wanted} is in none of {', '.join(map(str, folders))}; copy {DESCRIPTION} and the "
            f"tokenizer's file there from the prepared corpus or the run's folder"
        )

    @classmethod
    def of_model(cls, folder: Path, eot: int | None) -> "Tokenizer":
        """The vocabulary of a Hugging Face model's folder, whose texts end with the token `eot`, if it is known."""
        found = cls(folder / "tokenizer.json")
        if found.description and eot is not None:
            found.description.end_of_text = found.engine.id_to_token(eot)
        return found

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Size, end-of-text token and hash."""
        if self.description is None:
            return VOCABULARIES[self.name]
        special = self.description.special_tokens
        if self._hugging_face:
            special = {t.content: i for i, t in self.engine.get_added_tokens_decoder().items() if t.special}
            size = max(self.engine.get_vocab(with_added_tokens=True).values()) + 1
        else:
            size = self.engine.n_vocab
        eot = end_of(special, self.description.end_of_text, self.description.path)
        return Vocabulary(size, eot, self.description.sha256(eot))

    @property
    def vocab_size(self) -> int:
        """Number of tokens, the special ones included."""
        return self.vocabulary.size

    @property
    def eot(self) -> int:
        """The token that ends every document."""
        return self.vocabulary.eot

    @property
    def reference(self) -> str:
        """What data.tokenizer says of it."""
        return reference(self.name, self.vocabulary.sha256)

    @property
    def dtype(self) -> np.dtype:
        """Of token ids: little-endian uint16 up to 65,536 tokens, then uint32."""
        return np.dtype(dtype_of(self.vocab_size))

    def save(self, folder: Path) -> None:
        """Keep a copy in a folder, for `find`; those that come with the package need none."""
        if self.description is not None:
            self.description.save(folder)

    def objection(self, text: str) -> str | None:
        """Why this vocabulary cannot hold `text`, in a few words; None where it can."""
        if self.name == "bytes":
            return "NUL character" if "\0" in text else None
        if self.description and not self._hugging_face and len(text) > LONGEST_BLANK:
            return "white space without end" if re.search(f"{BLANK}{{{LONGEST_BLANK},}}", text) else None
        return None

    def encode(self, text: str) -> np.ndarray:
        """Token ids of a text: 1-D, of `dtype`, without the end-of-text token."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids of texts without an objection: a 1-D array of `dtype` per text, without the end-of-text token.

        All cores share the work: the libraries release Python's lock while they encode.
        """
        if self._hugging_face:
            encoded = self.engine.encode_batch_fast(list(texts), add_special_tokens=False)
            return [np.array(one.ids, dtype=self.dtype) for one in encoded]
        threads = len(os.sched_getaffinity(0))
        # Several runs of texts a thread, so that one long text does not leave the other threads idle.
        size = max(1, len(texts) // (8 * threads))
        runs = [texts[i : i + size] for i in range(0, len(texts), size)]
        with ThreadPoolExecutor(threads) as pool:
            return [ids for run in pool.map(lambda run: [self._encode(text) for text in run], runs) for ids in run]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids, the end-of-text token as it is written, or NUL; incomplete UTF-8 becomes U+FFFD."""
        whole = [int(i) for i in ids]
        if self.name == "bytes":
            return bytes(whole).decode("utf-8", errors="replace")
        return self.engine.decode(whole, **({"skip_special_tokens": False} if self._hugging_face else {}))

    @property
    def _hugging_face(self) -> bool:
        return self.description is not None and self.description.path.suffix == ".json"

    @cached_property
    def engine(self) -> Any:
        """What encodes: a `tiktoken.Encoding` or a `tokenizers.Tokenizer`; None: bytes need none."""
        if self.name == "bytes":
            return None
        if self.description is None:
            return _gpt2(WORDS)
        if self._hugging_face:
            return read_hugging_face(self.description.path)
        return _encoding(self.description.path, self.description.pattern or WORDS, self.description.special_tokens)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Bytes of text that each token id stands for: int64, (vocab_size,); the end-of-text token has none.

        Where the vocabulary puts a blank before every text, that token has -1: it is what the next text has too many.
        """
        found = np.ones(self.vocab_size, np.int64)
        if self.name != "bytes":
            found[:] = [self._length(token) for token in range(self.vocab_size)]
        found[self.eot] = 1 - found[self.encode("a")].sum()
        return found

    def _length(self, token: int) -> int:
        if not self._hugging_face:
            with suppress(KeyError):  # of an id without a token
                return len(self.engine.decode_single_token_bytes(token))
            return 0
        text = self.engine.id_to_token(token) or ""
        if token in self._as_letters:
            return len(text)
        return 1 if re.fullmatch(r"<0x[0-9A-F]{2}>", text) else len(text.replace("▁", " ").encode())

    @cached_property
    def _as_letters(self) -> set[int]:
        """Tokens of Hugging Face's that write every byte as a character."""
        if '"ByteLevel"' not in json.dumps(json.loads(self.engine.to_str())["decoder"]):
            return set()
        return set(range(self.vocab_size)) - set(self.engine.get_added_tokens_decoder())

    def _encode(self, text: str) -> np.ndarray:
        if self.name == "bytes":
            return np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(self.dtype)
        # A word ends before white space. Of a run, all but the last character is one word; at the end of the text, all.
        parts, done = [], 0
        long = not self.description and len(text) > LONGEST_BLANK
        for run in re.finditer(f"{BLANK}{{{LONGEST_BLANK},}}", text) if long else ():
            end = run.end() - (run.end() < len(text))
            parts += [(self.engine, text[done : run.start()]), (_gpt2(ALL), text[run.start() : end])]
            done = end
        # No special token allowed and none forbidden: the meaning of `encode_ordinary`, but into an array (uint32).
        plain: dict[str, Any] = {"allowed_special": set(), "disallowed_special": ()}
        ids = [engine.encode_to_numpy(part, **plain) for engine, part in [*parts, (self.engine, text[done:])]]
        return np.concatenate(ids).astype(self.dtype)


@cache
def _gpt2(pattern: str) -> Any:
    """tiktoken's encoding, from the rank file in this package (no network)."""
    file = resources.files("mup_lightning.data").joinpath("vocabulary", "gpt2.tiktoken")
    return _encoding(file, pattern, {"<|endoftext|>": VOCABULARIES["gpt2"].eot}, VOCABULARIES["gpt2"].sha256)


def _encoding(file: Any, pattern: str, special: dict[str, int], sha256: str = "") -> Any:
    """A `tiktoken.Encoding` of a rank file; `pattern` cuts text into words to merge."""
    import tiktoken

    ranks = read_ranks(file, sha256)
    try:
        return tiktoken.Encoding(file.name, pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)
    except ValueError as error:
        raise UserError(f"{file}: its pattern is no regular expression that tiktoken reads: {error}") from None
