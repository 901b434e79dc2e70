"""What a source consists of, how several processes share it, and what of it has changed since a corpus was made."""

import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple, Self, TypeVar

from mup_lightning.data.card import Card, load_card
from mup_lightning.data.encodings import DESCRIPTION
from mup_lightning.data.shards import Manifest, read_checked
from mup_lightning.errors import UserError
from mup_lightning.files import file_sha256, write_json

RECORD = "sources.json"

T = TypeVar("T")
Share = tuple[int, int]
"""Number I of N equal parts of a source."""

WHOLE: Share = (1, 1)
"""All of it."""


class Piece(NamedTuple):
    """A whole file, or one row group of a Parquet file; a share of a source has whole pieces."""

    path: Path
    group: int = 0
    first_row: int = 0
    rows: int = 0


def pieces(card: Card, share: Share = WHOLE) -> Sequence[Piece]:
    """A share of the local pieces of a card, in order. Raises UserError where there are fewer pieces than shares."""
    if card.source.kind == "hub":
        return []
    if card.source.kind != "parquet":
        return share_of([Piece(path) for path in card.input_files()], share)
    import pyarrow.parquet  # type: ignore[import-untyped]

    found: list[Piece] = []
    for path in card.input_files():
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                names = file.schema_arrow.names
                sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"{card.path}: {path} is no whole Parquet file: {error}") from None
        check_column(card, names, path)
        found += [Piece(path, group, sum(sizes[:group]), rows) for group, rows in enumerate(sizes)]
    return share_of(found, share)


def share_of(items: Sequence[T], share: Share) -> Sequence[T]:
    """Number I of N equal parts of a sequence. Raises UserError where it has fewer than N items."""
    number, of = share
    if share != WHOLE and of > len(items):
        raise UserError(f"the source has {len(items)} files or row groups; expected at most as many shares, not {of}")
    return items[(number - 1) * len(items) // of : number * len(items) // of]


def check_column(card: Card, found: list[str], path: Path | None = None) -> None:
    """Raise UserError where a card's text column is none of those found (in a file)."""
    if card.text_column not in found:
        of = f" of {path}" * (path is not None)
        raise UserError(
            f"{card.path}: text_column is {card.text_column!r}, but the documents{of} have only "
            f"{', '.join(found) or 'nothing'}. Set it to one of these."
        )


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
            now, before = File(status.st_size, status.st_ctime_ns, ""), known.files.get(name) if known else None
            if before and replace(before, sha256="") == now:
                now = before
            elif every or (before and before.size == now.size):
                now.sha256 = file_sha256(path)
            states[name] = now
        return cls(os.path.relpath(card.path, folder), card.hash(), states)

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
    Raises UserError where the record is damaged.
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
