"""Records what a corpus was made of, so that later changes to its card or files are noticed."""

import hashlib
import json
import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from mup_lightning.data.card import Card, load_card
from mup_lightning.data.encodings import DESCRIPTION
from mup_lightning.data.shards import Manifest, read_checked
from mup_lightning.errors import UserError
from mup_lightning.files import file_sha256, write_json

RECORD = "sources.json"


@dataclass
class File:
    """A file's size in bytes, the time of its last change (st_ctime_ns, which nothing sets back), and its contents."""

    size: int
    changed: int
    sha256: str


@dataclass
class Sources:
    """The contents of sources.json. A corpus of an earlier version has none, and is never found to be stale.

    Attributes:
        card: the card's file, relative to the corpus.
        rules: hash of what determines the tokens in the card as it was written, where a branch is not yet a commit.
        files: of the source, by their names relative to the card.
        source_hash: of the manifest to which the record belongs.
    """

    card: str
    rules: str
    files: dict[str, File]
    source_hash: str = ""

    @classmethod
    def of(cls, card: Card, files: Sequence[Path], folder: Path, known: Self | None, every: bool = True) -> Self:
        """What the corpus in `folder` would be made of now.

        Files that are in `known` with their size and time are not read again; unless `every`, neither are those whose
        other size says enough.
        """
        states = {}
        for path in files:
            name, status = os.path.relpath(path, card.path.parent), path.stat()
            before = known.files.get(name) if known else None
            same = before is not None and before.size == status.st_size
            if before and same and before.changed == status.st_ctime_ns:
                states[name] = before
            else:
                digest = file_sha256(path) if every or same else ""
                states[name] = File(status.st_size, status.st_ctime_ns, digest)
        rules = hashlib.sha256(json.dumps(card.rules(), sort_keys=True).encode()).hexdigest()
        return cls(os.path.relpath(card.path, folder), rules, states)

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """The record of a corpus, if it has one. Raises UserError where it is damaged."""
        return read_checked(cls, folder / RECORD) if (folder / RECORD).exists() else None

    def save(self, folder: Path) -> None:
        """Write sources.json, atomically."""
        write_json(folder / RECORD, asdict(self))

    def changes(self, now: Self) -> str:
        """What differs now, in a few words; empty: nothing that determines tokens."""
        then, there = self.files, now.files
        sorts = {
            "new": there.keys() - then.keys(),
            "changed": {name for name in then.keys() & there.keys() if then[name].sha256 != there[name].sha256},
            "gone": then.keys() - there.keys(),
        }
        words = ["the card has changed"] * (self.rules != now.rules)
        words += [f"{len(names)} {sort} ({min(names)})" for sort, names in sorts.items() if names]
        return ", ".join(words)


def note_changes(folder: str | Path) -> None:
    """Say on stderr how the card or files of a corpus have changed since it was prepared, where they are here.

    It is a note, not a refusal: the corpus is whole, and a run that continues wants the text with which it began.

    Raises:
        UserError: the record is damaged.
    """
    folder = Path(folder)
    record = Sources.load(folder)
    if record is None or record.source_hash != (manifest := Manifest.load(folder)).source_hash:
        return
    path = Path(os.path.normpath(folder.absolute() / record.card))
    changes = ""
    with suppress(OSError):  # what this user may not read is not here
        if path.is_file() and (not record.files or any((path.parent / name).exists() for name in record.files)):
            try:
                card = load_card(path)
                changes = record.changes(Sources.of(card, card.input_files(), folder, record, every=False))
            except UserError as error:
                changes = str(error)
    if changes:
        own = folder / DESCRIPTION
        words = ["--tokenizer", str(own) if own.is_file() else manifest.tokenizer, "--out", str(folder), "--force"]
        again = shlex.join(["mup-lightning", "data", "prepare", os.path.relpath(path), *words])
        print(
            f"note: {folder} is used as it is, but what it was prepared from has changed since: {changes}. To prepare "
            f"it again: {again}",
            file=sys.stderr,
            flush=True,
        )
