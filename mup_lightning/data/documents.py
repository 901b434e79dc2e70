"""The documents of a card: read in order, cut into sections, and split into train and validation.

datasets 5.2 handles bad input badly (tried): its jsonl and text readers stop at the first invalid byte, the jsonl
reader also at a broken line or a lone surrogate, without naming the line; in compressed files they ignore the requested
encoding; and iterating parquet stops at an invalid byte. So lines and files are read here as bytes, datasets supplies
the columns of parquet and hub data sets as bytes, and each document is decoded on its own.
"""

import bz2
import glob
import gzip
import hashlib
import io
import json
import lzma
import re
import tempfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from mup_lightning.data.card import Card, Sections, Validation
from mup_lightning.data.shards import Manifest
from mup_lightning.errors import UserError

ROWS, FILES = 256, 4  # documents in memory at a time: lines or rows of a table, whole files


def _open_zst(path: Path, mode: str) -> BinaryIO:
    import pyarrow  # type: ignore[import-untyped]  # Python itself reads .zst from 3.14 on

    return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))


OPENERS: dict[str, Callable[..., Any]] = {".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open, ".zst": _open_zst}


class _BadDocument(Exception):  # noqa: N818  # a finding, which is counted
    """A document that cannot be used; the message is the reason, in a few words."""


class DocumentReader:
    """The usable documents of a card in order, in small batches of texts; counted in a corpus's manifest.

    `objection` tells why a text cannot be used, see `Tokenizer.objection`. Begins after the last batch of an earlier
    reader where the `position` of that one is given.

    Attributes:
        read: documents read so far, by earlier readers too.
        total_bytes: bytes of all documents; None where unknown (compressed files, columns).
        total_documents: None where unknown (lines, files).
    """

    def __init__(
        self,
        card: Card,
        files: list[Path],
        objection: Callable[[str], str | None],
        manifest: Manifest,
        position: dict[str, Any] | None = None,
    ) -> None:
        self.card, self.files, self.objection, self.manifest = card, files, objection, manifest
        self.read: int = position["read"] if position else 0
        self._state: dict[str, Any] | None = position["dataset"] if position else None
        self._dataset: Any = None
        self._columnar = card.source.kind in ("parquet", "hub")
        packed = any(path.suffix in OPENERS for path in files)
        self.total_bytes = None if self._columnar or packed else sum(path.stat().st_size for path in files)
        self.total_documents: int | None = None

    def position(self) -> dict[str, Any]:
        """Where the last batch ended, as plain JSON values."""
        return {"read": self.read, "dataset": self._dataset.state_dict() if self._dataset is not None else None}

    def __iter__(self) -> Iterator[list[str]]:
        """Batches of texts. Raises UserError where the source cannot be read, has no such column, or a bad document."""
        try:
            for values in self._columns() if self._columnar else self._records():
                texts = []
                for number, value in enumerate(values, self.read):
                    try:
                        texts.append(self._text(value, first=number == 0))
                    except _BadDocument as bad:
                        self._leave_out(number, str(bad))
                self.read += len(values)
                self.manifest.documents += len(texts)
                self.manifest.text_bytes += sum(len(value) + 1 for value in values if isinstance(value, bytes))
                yield texts
        except UserError:
            raise
        except Exception as error:  # readers of compressed, remote and columnar files raise classes of many libraries
            source = self.card.source
            what = ", ".join(str(path) for path in self.files[:3]) or f"hub data set {source.dataset}"
            reason = str(error) or type(error).__name__
            raise UserError(
                f"{self.card.path}: reading {what} failed after document {self.read}: {reason}. Check that the "
                f"files are whole and of the kind {source.kind} (for a hub data set: the network, dataset, subset and "
                f"revision), then run again: it resumes."
            ) from error

    def _leave_out(self, number: int, reason: str) -> None:
        if self.card.on_bad_document == "refuse":
            raise UserError(
                f"{self.card.path}: document {number} (counted from 0) is bad: {reason}. Correct it, or set "
                f"on_bad_document: skip to leave such documents out and count them."
            )
        self.manifest.skipped[reason] = self.manifest.skipped.get(reason, 0) + 1

    def _records(self) -> Iterator[list[bytes]]:
        """Lines without their line endings, or whole files with LF line endings."""
        by_file = self.card.source.kind == "text" and self.card.source.document == "file"

        def read() -> Iterator[bytes]:
            for path in self.files:
                with OPENERS.get(path.suffix, open)(path, "rb") as file:
                    if by_file:
                        yield file.read().replace(b"\r\n", b"\n")
                    else:
                        yield from (line.removesuffix(b"\n").removesuffix(b"\r") for line in file)

        records = islice(read(), self.read, None)
        return iter(lambda: list(islice(records, FILES if by_file else ROWS)), [])

    def _columns(self) -> Iterator[list[Any]]:
        """The text column of parquet files or of a hub data set, streamed: bytes where it is text."""
        import datasets
        import pyarrow.parquet  # type: ignore[import-untyped]

        datasets.disable_progress_bars()
        source, column = self.card.source, self.card.text_column
        if source.kind == "parquet":
            names = [str(path.resolve()) for path in self.files]
            self.total_documents = sum(pyarrow.parquet.read_metadata(name).num_rows for name in names)
            where: dict[str, Any] = {"path": "parquet", "data_files": [glob.escape(name) for name in names]}
        else:
            where = {"path": source.dataset, "name": source.subset, "revision": source.revision}
        with tempfile.TemporaryDirectory(prefix="mup-lightning-") as cache:  # for lock files; the data are streamed
            dataset = datasets.load_dataset(**where, split=source.split, streaming=True, cache_dir=cache)
            self._check_column(dataset.column_names or [column])
            if split := (dataset.info.splits or {}).get(source.split):
                self.total_documents = split.num_examples
            self._dataset = dataset.select_columns([column]).with_format("arrow")
            if self._state is not None:
                self._dataset.load_state_dict(self._state)
            for table in self._dataset.iter(ROWS):
                values = table[column]
                if pyarrow.types.is_string(values.type) or pyarrow.types.is_large_string(values.type):
                    values = values.cast(pyarrow.large_binary())
                yield values.to_pylist()

    def _text(self, value: Any, first: bool) -> str:
        text = _decode(value).removeprefix("\ufeff")
        if self.card.source.kind == "jsonl":
            text = self._json_text(text, first)
        reason = self.objection(text) if text.strip() else "empty"
        if reason is not None:
            raise _BadDocument(reason)
        return text

    def _json_text(self, line: str, first: bool) -> str:
        if not line.strip():
            raise _BadDocument("blank line")
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            raise _BadDocument("not JSON") from None
        if not isinstance(record, dict):
            raise _BadDocument("not a JSON object")
        if first:  # not one bad document, but a card that does not fit
            self._check_column(list(record))
        if self.card.text_column not in record:
            raise _BadDocument(f"no {self.card.text_column}")
        text = record[self.card.text_column]
        # An escaped surrogate without its other half becomes invalid UTF-8.
        return _decode(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)

    def _check_column(self, found: list[str]) -> None:
        if self.card.text_column not in found:
            raise UserError(
                f"{self.card.path}: text_column is {self.card.text_column!r}, but the documents have only "
                f"{', '.join(found) or 'nothing'}. Set it to one of these."
            )


def _decode(value: Any) -> str:
    if value is None:
        raise _BadDocument("text is null")
    if not isinstance(value, bytes):
        raise _BadDocument("text is not a string")
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        raise _BadDocument("not UTF-8") from None


def cut(text: str, sections: Sections | None) -> list[str]:
    """The sections of a document in order. Joined, they give the text, except that blank sections are dropped.

    With `pattern` (multi-line) a section begins at each match. With `max_characters`, longer sections are then cut
    after a blank line; where a single paragraph is too long, after a line or a word; failing that, anywhere.
    """
    if sections is None:
        return [text]
    pieces = [text]
    if sections.pattern is not None:
        starts = [match.start() for match in re.finditer(sections.pattern, text, re.MULTILINE)]
        pieces = [text[a:b] for a, b in zip([0, *starts], [*starts, len(text)], strict=True)]
    if sections.max_characters is not None:
        pieces = [short for piece in pieces for short in _shorten(piece, sections.max_characters)]
    return [piece for piece in pieces if piece.strip()]


def _shorten(text: str, longest: int) -> Iterator[str]:
    start = 0
    while len(text) - start > longest:
        end = start + longest
        for separator in ("\n\n", "\n", " "):
            at = text.rfind(separator, start, end)
            if at >= start:
                end = at + len(separator)
                break
        yield text[start:end]
        start = end
    yield text[start:]


def is_validation(text: str, validation: Validation) -> bool:
    """Whether a document (or section) belongs to the validation split.

    It depends on the text and the seed alone, never on the place of the document: adding documents moves no others,
    and copies of a text always land in the same split.
    """
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8, key=str(validation.seed).encode()).digest()
    return int.from_bytes(digest, "big") < validation.fraction * 2.0**64
