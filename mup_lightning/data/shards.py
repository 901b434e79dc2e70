"""The format of a prepared corpus: token shards, and the manifest that is written last and describes them.

A shard is raw little-endian uint16, or uint32 above 65,536 symbols, without a header. A folder without a manifest is
unfinished.
"""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, Self, TypeVar

import numpy as np

from mup_lightning.config.data import MANIFEST, VOCABULARIES, Vocabulary, dtype_of, reference
from mup_lightning.errors import UserError, located
from mup_lightning.files import file_sha256, json_sha256, read_json, sync, write_json
from mup_lightning.typed import Bound, NonNegativeInt, PositiveInt, build

SPLITS = ("train", "val")

AGAIN = "copy the corpus again, or prepare it again with: mup-lightning data prepare CARD --force"


@dataclass
class Shard:
    """A shard's file name, its length in tokens, and the sha256 of its bytes."""

    file: str
    tokens: PositiveInt
    sha256: str

    def check(self, folder: Path, verify: bool, dtype: str) -> None:
        """Raise UserError unless the file exists, has the size of its tokens and (if `verify`) its sha256."""
        path, expected = folder / self.file, np.dtype(dtype).itemsize * self.tokens
        if not path.is_file():
            raise UserError(f"shard {path} is missing; {AGAIN}")
        if (size := path.stat().st_size) != expected:
            raise UserError(f"shard {path} has {size} bytes, expected {expected}; {AGAIN}")
        if verify and (digest := file_sha256(path)) != self.sha256:
            raise UserError(f"shard {path} is damaged: its sha256 is {digest}, expected {self.sha256}; {AGAIN}")


@dataclass
class Split:
    """One split of a corpus: tokens (including each document's end-of-text token), documents, shards in order.

    `text_bytes` is the length of its documents in UTF-8; None: the corpus was prepared before this was counted.
    """

    tokens: NonNegativeInt = 0
    documents: NonNegativeInt = 0
    text_bytes: NonNegativeInt | None = None
    shards: list[Shard] = field(default_factory=list)


Splits = Annotated[dict[str, Split], Bound("the splits train and val", lambda splits: set(splits) == set(SPLITS))]


@dataclass
class Manifest:
    """The contents of manifest.json. It holds no date and no path, so that equal sources give equal bytes.

    Attributes:
        name: the card's name.
        tokenizer: name of the vocabulary, with its `vocab_size`, `vocab_hash` and end-of-text token `eot`. One that
            does not come with the package lies beside the manifest (`Tokenizer.find`).
        source_hash: identifies the text and the rules of the card (see `Card.hash`).
        source: where the text came from, and its licence.
        documents: documents that were read and used, before sections are cut.
        text_bytes: bytes of all documents as read.
        skipped: documents left out, counted by reason.
        splits: train and val; here sections count as documents.
        unigram_loss: see `prepare.unigram_loss`.
    """

    name: str
    tokenizer: str
    vocab_size: PositiveInt
    vocab_hash: str
    eot: int
    source_hash: str
    source: dict[str, Any]
    documents: int
    text_bytes: int
    skipped: dict[str, int]
    splits: Splits
    unigram_loss: float
    dtype: Literal["<u2", "<u4"] = "<u2"
    format_version: Literal[1] = 1

    @classmethod
    def begin(cls, name: str, tokenizer: str, vocabulary: Vocabulary | None = None) -> Self:
        """Describe a corpus that has no tokens yet; a `vocabulary` that comes with the package is known by its name."""
        size, eot, sha256 = vocabulary or VOCABULARIES[tokenizer]
        splits, dtype = {split: Split(text_bytes=0) for split in SPLITS}, dtype_of(size)
        return cls(name, tokenizer, size, sha256, eot, "", {}, 0, 0, {}, splits, 0.0, dtype)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read the manifest of a prepared folder; UserError where it is missing, damaged, or of another version."""
        path = Path(folder) / MANIFEST
        if not path.exists():
            tokenizer = " --tokenizer bytes" if path.parent.name.endswith("-bytes") else ""
            raise UserError(
                f"there is no prepared corpus at {path.parent}: no {MANIFEST}, which is written last. Set data.path "
                f"or run: mup-lightning data prepare data/austen.yaml{tokenizer} (or your own card; it resumes)"
            )
        found = read_checked(cls, path)
        if found.dtype != dtype_of(found.vocab_size):
            raise UserError(f"{path} is damaged: its dtype is {found.dtype}, of {found.vocab_size} tokens; {AGAIN}")
        return found

    def leave_out(self, reason: str, count: int = 1) -> None:
        """Count documents that are left out."""
        if count:
            self.skipped[reason] = self.skipped.get(reason, 0) + count

    def drop_duplicates(self, count: int) -> None:
        """Count documents as left out that were counted as used."""
        self.documents -= count
        self.leave_out("duplicate", count)

    def save(self, folder: str | Path) -> None:
        """Write manifest.json into `folder`, atomically."""
        write_json(Path(folder) / MANIFEST, asdict(self))

    def check(self, folder: Path, split: str, verify: bool = True) -> Self:
        """Itself; raises UserError unless every shard of a split is there, whole, and of its sha256 if `verify`."""
        for shard in self.splits[split].shards:
            shard.check(folder, verify, self.dtype)
        return self


T = TypeVar("T")


def read_checked(cls: type[T], path: Path) -> T:
    """An object from its JSON file. Raises UserError where a key is missing, unknown or of another type."""
    values = read_json(path, f"a file of `data prepare`; {AGAIN}")
    with located(f"{path} is damaged or of another version"):
        return build(cls, values)


def manifest_hash(manifest: Manifest) -> str:
    """The corpus hash, sha256 hex of what makes two corpora interchangeable: vocabulary and shards, in order.

    Checkpoints carry it, so that a run is never resumed on other data. It ignores names, counts and licences.
    """
    content = {split: [shard.sha256 for shard in manifest.splits[split].shards] for split in SPLITS}
    return json_sha256({"vocabulary": manifest.vocab_hash, "shards": content})


def check_vocabulary(manifest: Manifest, tokenizer: str) -> None:
    """Raise UserError unless the corpus was prepared with the vocabulary that data.tokenizer names."""
    found = reference(manifest.tokenizer, manifest.vocab_hash)
    if tokenizer not in (found, "corpus"):
        size = f" ({VOCABULARIES[tokenizer].size} tokens)" if tokenizer in VOCABULARIES else ""
        advice = "Set data.tokenizer to that (corpus: whichever it is)"
        raise UserError(
            f"corpus {manifest.name!r} has another vocabulary: tokenizer {found!r} ({manifest.vocab_size} tokens), "
            f"but data.tokenizer is {tokenizer!r}{size}. {advice}, or prepare the corpus with that tokenizer."
        )


class TokenStore:
    """The tokens of one split of a prepared corpus, 0 to len(store) - 1, memory-mapped over all its shards.

    Tokens are read only on access. A store can be pickled; only its arguments are stored.
    """

    def __init__(self, path: str | Path, split: str, manifest: Manifest) -> None:
        self.path, self.split, self.manifest = Path(path), split, manifest
        self.shards = manifest.splits[split].shards
        self._ends = np.cumsum([shard.tokens for shard in self.shards], dtype=np.int64)
        self._begins = [int(end) - shard.tokens for end, shard in zip(self._ends, self.shards, strict=True)]

    @classmethod
    def open(cls, path: str | Path, split: str, verify: bool = True) -> Self:
        """Open a split ("train" or "val") of a prepared folder; `verify` compares every shard's sha256 (about 1 GB/s).

        Raises UserError where the folder, manifest or a shard is missing, of another version, truncated or altered.
        """
        return cls(path, split, Manifest.load(path).check(Path(path), split, verify))

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __reduce__(self) -> tuple[type["TokenStore"], tuple[Path, str, Manifest]]:
        return TokenStore, (self.path, self.split, self.manifest)

    @cached_property
    def _maps(self) -> list[np.ndarray]:
        # Plain views of the maps: slicing np.memmap itself costs several microseconds of bookkeeping.
        return [np.asarray(np.memmap(self.path / s.file, self.manifest.dtype, "r")) for s in self.shards]

    def windows(self, starts: Sequence[int] | np.ndarray, length: int) -> np.ndarray:
        """The tokens start to start + length - 1 of each start, across shards: int64, shape (len(starts), length).

        Raises IndexError for a window outside the split, UserError for a token id beyond the vocabulary (damage).
        """
        first = np.asarray(starts, dtype=np.int64)
        if first.size and (first.min() < 0 or first.max() + length > len(self)):
            raise IndexError(f"window outside the {self.split} split: starts {first}, {length} of {len(self)} tokens")
        out = np.empty((len(first), length), dtype=np.int64)
        shards = np.searchsorted(self._ends, first, side="right")
        for row, start, shard in zip(out, first.tolist(), shards.tolist(), strict=True):
            filled = 0
            while filled < length:
                at = start + filled - self._begins[shard]
                piece = self._maps[shard][at : at + length - filled]
                row[filled : filled + len(piece)] = piece
                filled += len(piece)
                shard += 1
        if out.size and out.max() >= self.manifest.vocab_size:
            window, offset = np.unravel_index(out.argmax(), out.shape)
            file, index = self.locate(int(first[window] + offset))
            raise UserError(
                f"shard {self.path / file} is damaged: it has the token id {out.max()} at index {index}, expected ids "
                f"below {self.manifest.vocab_size}; {AGAIN}"
            )
        return out

    def locate(self, token: int) -> tuple[str, int]:
        """The shard file that holds a token, and the token's index in that file."""
        shard = int(np.searchsorted(self._ends, token, side="right"))
        return self.shards[shard].file, token - self._begins[shard]


class SplitWriter:
    """Appends documents to the shards of one split.

    A shard is closed before the document that would make it longer than `shard_tokens`, so no document is cut, and
    where shards begin depends on the documents alone. A single document longer than that makes a longer shard.

    Continues what an earlier writer has written: its `split`. The open shard, whose tokens count though it is not in
    `split.shards` yet, is truncated to its length at the time, and must have the hash `known` of then; every later
    shard is deleted. Raises UserError where a shard is missing or damaged.
    """

    def __init__(
        self, folder: Path, name: str, shard_tokens: int, split: Split, known: str = "", dtype: str = "<u2"
    ) -> None:
        self.folder, self.name, self.shard_tokens, self.split, self.dtype = folder, name, shard_tokens, split, dtype
        self._open_tokens = split.tokens - sum(shard.tokens for shard in split.shards)
        path, size = self._path, np.dtype(dtype).itemsize * self._open_tokens
        if path.is_file() and path.stat().st_size > size:
            os.truncate(path, size)
        kept = [*split.shards, *([Shard(path.name, self._open_tokens, known)] if self._open_tokens else [])]
        for shard in kept:
            shard.check(folder, bool(shard.sha256), dtype)
        for later in set(folder.glob(f"{name}-[0-9]*.bin")) - {folder / shard.file for shard in kept}:
            later.unlink()
        self._file: BinaryIO | None = None

    @property
    def _path(self) -> Path:
        return self.folder / f"{self.name}-{len(self.split.shards):05d}.bin"

    def append(self, ids: np.ndarray, text_bytes: int = 0) -> None:
        """Write one document's tokens, the end-of-text token included; its text had so many bytes."""
        if self._open_tokens and self._open_tokens + len(ids) > self.shard_tokens:
            self.close_shard()
        if self._file is None:
            self._file = open(self._path, "ab")  # noqa: SIM115  # stays open over many documents
        self._file.write(ids.astype(self.dtype, copy=False).tobytes())
        self._open_tokens += len(ids)
        self.split.tokens += len(ids)
        self.split.documents += 1
        if self.split.text_bytes is not None:
            self.split.text_bytes += text_bytes

    def close_shard(self) -> None:
        """Finish the open shard, if it has any tokens."""
        self.sync()
        self.close()
        if self._open_tokens:
            self.split.shards.append(Shard(self._path.name, self._open_tokens, file_sha256(self._path)))
            self._open_tokens = 0

    def sync(self) -> None:
        """Flush what was written to the disk, so that a journal may rely on it."""
        if self._file is not None:
            sync(self._file)

    def open_hash(self) -> str:
        """The sha256 of the open shard; empty where there is none."""
        return file_sha256(self._path) if self._open_tokens else ""

    def close(self) -> None:
        """Close the open file as it is. Never raises: after an error (a full disk) there may be nothing to save."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
        self._file = None
