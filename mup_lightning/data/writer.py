"""Writing shards so that a killed run can go on: unfinished files end in .part, a journal says how far they hold."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mup_lightning.data.shards import DTYPE, MANIFEST, SPLITS, Shard, Split, write_json
from mup_lightning.errors import UserError

JOURNAL = "journal.json"
PART = ".part"


class SplitWriter:
    """Appends documents to the shards of one split.

    A shard is closed before the document that would take it beyond `shard_tokens`, so no document is cut, and where
    shards begin depends on the documents alone. One document longer than `shard_tokens` makes a longer shard.
    """

    def __init__(self, folder: Path, split: str, shard_tokens: int) -> None:
        self.folder, self.split, self.shard_tokens = folder, split, shard_tokens
        self.shards: list[Shard] = []
        self.documents = 0
        self.tokens = 0  # in the open shard
        self._file: BinaryIO | None = None
        self._digest = hashlib.sha256()

    def append(self, ids: np.ndarray) -> None:
        """Write one document (its end-of-text symbol included)."""
        if self.tokens and self.tokens + len(ids) > self.shard_tokens:
            self.close_shard()
        if self._file is None:
            self._file = open(self._part(), "ab")  # noqa: SIM115  # stays open over many documents
        data = ids.astype(DTYPE, copy=False).tobytes()
        self._file.write(data)
        self._digest.update(data)
        self.tokens += len(ids)
        self.documents += 1

    def close_shard(self) -> None:
        """Finish the open shard, if it has any tokens, under its final name."""
        self.sync()
        if self._file is not None:
            self._file.close()
            os.replace(self._part(), self._name(len(self.shards)))
            self.shards.append(Shard(self._name(len(self.shards)).name, self.tokens, self._digest.hexdigest()))
        self._file, self._digest, self.tokens = None, hashlib.sha256(), 0

    def sync(self) -> None:
        """Bring what was written to the disk, so that a journal may count on it."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())

    def abandon(self) -> None:
        """Close the open file as it is, without raising: after an error (a full disk) there may be nothing to save."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()

    def state(self) -> dict[str, Any]:
        """What resume() needs, as plain JSON values."""
        return {"shards": [asdict(s) for s in self.shards], "tokens": self.tokens, "documents": self.documents}

    def resume(self, state: dict[str, Any]) -> None:
        """Go back to a journalled state: cut the open shard to the length it had, drop everything later."""
        self.shards = [Shard(**shard) for shard in state["shards"]]
        self.documents = state["documents"]
        keep = {shard.file for shard in self.shards}
        part, name = self._part(), self._name(len(self.shards))
        if not part.exists() and name.exists():  # finished after the journal was written
            os.replace(name, part)
        for path in list(self.folder.glob(f"{self.split}-*.bin*")):
            if path != part and path.name not in keep:
                path.unlink()
        for shard in self.shards:
            path = self.folder / shard.file
            if not path.is_file() or path.stat().st_size != 2 * shard.tokens:
                raise UserError(_broken(self.folder, f"{path} is missing or has another length than {JOURNAL} says"))
        self.tokens = state["tokens"]
        if not self.tokens:
            part.unlink(missing_ok=True)
            return
        if not part.exists() or part.stat().st_size < 2 * self.tokens:
            raise UserError(_broken(self.folder, f"{part} is shorter than the {2 * self.tokens} bytes in {JOURNAL}"))
        os.truncate(part, 2 * self.tokens)
        with open(part, "rb") as file:
            while chunk := file.read(1 << 22):
                self._digest.update(chunk)
        self._file = open(part, "ab")  # noqa: SIM115  # stays open over many documents

    def summary(self) -> Split:
        """The manifest's entry, once every shard is closed."""
        return Split(sum(shard.tokens for shard in self.shards), self.documents, self.shards)

    def _name(self, index: int) -> Path:
        return self.folder / f"{self.split}-{index:05d}.bin"

    def _part(self) -> Path:
        name = self._name(len(self.shards))
        return name.with_name(name.name + PART)


@dataclass
class Journal:
    """How far an unfinished corpus is. `identity` says of what; `reader` is the position in the source."""

    identity: dict[str, Any]
    read: int = 0
    documents: int = 0
    text_bytes: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    reader: dict[str, Any] | None = None
    splits: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path) -> Journal | None:
        """The journal of a folder, or None. Raises UserError where it cannot be understood."""
        path = folder / JOURNAL
        if not path.exists():
            return None
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise UserError(_broken(folder, f"{path} cannot be read ({error})")) from error

    def save(self, folder: Path) -> None:
        """Write the journal, at once or not at all."""
        write_json(folder / JOURNAL, asdict(self))


def clear(folder: Path) -> None:
    """Remove a corpus, finished or not, from `folder`: the manifest first, and no file of another name."""
    (folder / MANIFEST).unlink(missing_ok=True)
    for split in SPLITS:
        for path in [*folder.glob(f"{split}-[0-9]*.bin"), *folder.glob(f"{split}-[0-9]*.bin{PART}")]:
            path.unlink()
    for name in (JOURNAL, f"{JOURNAL}.tmp", f"{MANIFEST}.tmp"):
        (folder / name).unlink(missing_ok=True)


def _broken(folder: Path, what: str) -> str:
    return f"the unfinished corpus in {folder} cannot be continued: {what}. Start it again with --force."
