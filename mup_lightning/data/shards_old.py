"""Reading prepared tokens: memory-mapped shards behind one address space of tokens."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from mup_lightning.data.shards import DTYPE, Manifest, Shard, check_vocabulary, manifest_hash
from mup_lightning.errors import UserError

__all__ = ["Manifest", "Shard", "TokenStore", "check_vocabulary", "file_sha256", "manifest_hash", "verify_shard"]

CHUNK = 1 << 22  # bytes read at a time while hashing


class TokenStore:
    """The tokens of one split of a prepared corpus, 0 .. len(store) - 1, over all its shards.

    Nothing is read until it is asked for. A store can be pickled (only its path and split travel).
    """

    def __init__(self, path: str | Path, split: str, manifest: Manifest) -> None:
        self.path, self.split, self.manifest = Path(path), split, manifest
        self.shards = manifest.splits[split].shards
        self._map()

    @classmethod
    def open(cls, path: str | Path, split: str, verify: bool = True) -> TokenStore:
        """Open the split ("train" or "val") of a prepared folder.

        `verify` reads every shard once and compares its sha256 and largest token id (about 1 GB/s). Raises UserError
        for a missing folder, manifest or shard, another format version, and a truncated or altered shard.
        """
        manifest = Manifest.load(path)
        if split not in manifest.splits:
            raise ValueError(f"split must be one of {', '.join(manifest.splits)}, not {split!r}")
        for shard in manifest.splits[split].shards:
            check_size(Path(path), shard)
            if verify:
                verify_shard(Path(path), shard, manifest.vocab_size)
        return cls(path, split, manifest)

    def __len__(self) -> int:
        return self._length

    def window(self, start: int, length: int) -> np.ndarray:
        """The tokens start .. start + length - 1 (int64), across shard boundaries."""
        return self.windows(np.array([start]), length)[0]

    def windows(self, starts: np.ndarray, length: int) -> np.ndarray:
        """Several windows at once: int64, shape (len(starts), length). The caller owns the array.

        Raises IndexError outside the split and UserError for a token id beyond the vocabulary (a damaged shard).
        """
        if len(starts) and (min(starts) < 0 or max(starts) + length > self._length):
            raise IndexError(
                f"window outside the {self.split} split: starts {starts}, {length} of {self._length} tokens"
            )
        out = np.empty((len(starts), length), dtype=np.int64)
        shards = np.searchsorted(self._ends, starts, side="right")
        for row, start, shard in zip(out, starts.tolist(), shards.tolist(), strict=True):
            filled = 0
            while filled < length:
                at = start + filled - self._begins[shard]
                piece = self._maps[shard][at : at + length - filled]
                row[filled : filled + len(piece)] = piece
                filled += len(piece)
                shard += 1
        if out.size and out.max() >= self.manifest.vocab_size:
            row_index = int(out.max(axis=1).argmax())
            self._refuse_id(int(starts[row_index]), out[row_index])
        return out

    def locate(self, token: int) -> tuple[str, int]:
        """The shard file that holds a token, and the token's place in it."""
        if not 0 <= token < self._length:
            raise IndexError(f"token {token} of the {self.split} split, which has {self._length}")
        shard = int(np.searchsorted(self._ends, token, side="right"))
        return self.shards[shard].file, token - self._begins[shard]

    def _map(self) -> None:
        lengths = [shard.tokens for shard in self.shards]
        self._ends = np.cumsum([0, *lengths])[1:]
        self._begins = [int(end) - length for end, length in zip(self._ends, lengths, strict=True)]
        self._length = sum(lengths)
        # A plain view of the map: slicing np.memmap itself costs several microseconds of bookkeeping.
        self._maps = [np.asarray(np.memmap(self.path / s.file, dtype=DTYPE, mode="r")) for s in self.shards]

    def _refuse_id(self, start: int, row: np.ndarray) -> None:
        offset = int(row.argmax())
        file, place = self.locate(start + offset)
        raise UserError(_too_large(self.path / file, int(row[offset]), place, self.manifest.vocab_size))

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "split": self.split, "manifest": self.manifest, "shards": self.shards}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map()


def check_size(folder: Path, shard: Shard) -> None:
    """Raise UserError unless the shard's file exists and has the size that its tokens need."""
    path, expected = folder / shard.file, 2 * shard.tokens
    if not path.is_file():
        raise UserError(f"shard {path} is missing, though {folder}/manifest.json lists it. {_MEND}")
    size = path.stat().st_size
    if size != expected:
        raise UserError(
            f"shard {path} has {size} bytes, expected {expected} ({shard.tokens} tokens of 2 bytes): "
            f"it is {'truncated' if size < expected else 'too long'}. {_MEND}"
        )


def verify_shard(folder: Path, shard: Shard, vocab_size: int) -> None:
    """Read a shard once; raise UserError where its sha256 differs from the manifest or an id is >= vocab_size."""
    check_size(folder, shard)
    path = folder / shard.file
    digest, largest, place = file_sha256(path)
    if digest != shard.sha256:
        raise UserError(
            f"shard {path} is damaged: its sha256 is {digest}, but the manifest says {shard.sha256}. {_MEND}"
        )
    if largest >= vocab_size:
        raise UserError(_too_large(path, largest, place, vocab_size))


def file_sha256(path: Path) -> tuple[str, int, int]:
    """sha256 hex of a shard file, its largest token id, and where that is (-1, -1 for an empty file)."""
    digest, largest, place, read = hashlib.sha256(), -1, -1, 0
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            ids = np.frombuffer(chunk[: len(chunk) // 2 * 2], dtype=DTYPE)
            if ids.size and int(ids.max()) > largest:
                largest, place = int(ids.max()), read + int(ids.argmax())
            read += len(ids)
    return digest.hexdigest(), largest, place


def _too_large(path: Path, token: int, place: int, vocab_size: int) -> str:
    return (
        f"shard {path} has the token id {token} at place {place}, but the vocabulary has {vocab_size} symbols "
        f"(0 to {vocab_size - 1}). {_MEND}"
    )


_MEND = "Copy the corpus again, or prepare it again with: mup-lightning data prepare CARD --force"
