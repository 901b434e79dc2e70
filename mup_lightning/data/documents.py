"""The documents of a card, read in order.

datasets 5.2 handles bad input badly (tried): its jsonl and text readers stop at the first invalid byte, the jsonl
reader also at a broken line or a lone surrogate, without naming the line; in compressed files they ignore the requested
encoding; iterating parquet stops at an invalid byte, and where the first file's column is all null, at the next. So
lines, files and columns are read here as bytes, and each document is decoded on its own.
"""

import bz2
import codecs
import gzip
import io
import json
import lzma
import re
import sys
import tempfile
from bisect import bisect_right
from collections.abc import Callable, Iterator
from functools import partial
from itertools import accumulate, groupby, islice
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from mup_lightning.data.card import Card
from mup_lightning.data.shards import Manifest
from mup_lightning.data.sources import WHOLE, Share, check_column, pieces, share_of
from mup_lightning.errors import UserError

ROWS, FILES = 256, 4  # documents in memory at a time: lines or rows of a table, whole files
START: dict[str, Any] = {"read": 0, "dataset": None}  # the position of a reader that has read nothing
TRIED = 10_000  # documents without the text column, and none with it, after which the card is refused


def _open_zst(path: Path, mode: str) -> BinaryIO:
    import pyarrow  # type: ignore[import-untyped]  # Python itself reads .zst from 3.14 on

    return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))


OPENERS: dict[str, Callable[..., Any]] = {".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open, ".zst": _open_zst}
_LINES = "make it one object a line: jq -c"
# How files begin that are not what a card says: what they look like, and what to do; {} stands for the file's name.
_BEGINNINGS = (
    (rb"\x1f\x8b", "gzip data; rename it to {}.gz, which says how to unpack it"),
    (rb"\xfd7zXZ\0", "xz data; rename it to {}.xz, which says how to unpack it"),
    (rb"BZh[1-9]1AY&SY", "bzip2 data; rename it to {}.bz2, which says how to unpack it"),
    (rb"\x28\xb5\x2f\xfd", "zstandard data; rename it to {}.zst, which says how to unpack it"),
    (rb"PAR1\x15", "Parquet; set source.kind: parquet"),
    (rb"PK\x03\x04", "a zip archive; unpack it"),
    (rb"\xff\xfe\0\0|\0\0\xfe\xff", "UTF-32; make it UTF-8: iconv -f UTF-32 -t UTF-8 {}"),
    (rb"(?s)\xff\xfe|\xfe\xff|[^\0]\0[^\0]\0|\0[^\0]\0[^\0]", "UTF-16; make it UTF-8: iconv -f UTF-16 -t UTF-8 {}"),
)
_JSON_BEGINNINGS = (
    (rb"\s*\[\s*(\{|$)", f"a JSON array; {_LINES} '.[]' {{}}"),
    (rb"\s*\{\s*$", f"indented JSON; {_LINES} . {{}}"),
)
_LATIN = "it looks like Latin-1 or Windows-1252; expected UTF-8, as from iconv -f WINDOWS-1252 -t UTF-8"


class _BadDocument(Exception):  # noqa: N818  # a finding, which is counted
    """A document that cannot be used: the reason in a few words, by which it is counted, and a hint."""

    def __init__(self, reason: str, hint: str = "") -> None:
        super().__init__(reason)
        self.hint = hint


class DocumentReader:
    """The usable documents of a card in order, in small batches of texts; counted in a corpus's manifest.

    `objection` tells why a text cannot be used, see `Tokenizer.objection`. Begins after the last batch of an earlier
    reader where the `position` of that one is given. Reads a `share` of the source alone, number I of N.

    Attributes:
        read: documents read so far, by earlier readers too.
        total_bytes: bytes of all documents; None where unknown (compressed files, columns).
        total_documents: None where unknown (lines, files).
    """

    def __init__(
        self,
        card: Card,
        objection: Callable[[str], str | None],
        manifest: Manifest,
        position: dict[str, Any] = START,
        share: Share = WHOLE,
    ) -> None:
        self.card, self.objection, self.manifest = card, objection, manifest
        self.share, self._pieces = share, pieces(card, share)
        self.read: int = position["read"]
        self._state: dict[str, Any] | None = position["dataset"]
        self._dataset: Any = None
        self._file: Path | None = None  # that is open
        self._begins: list[int] = []  # the number of the first document of each piece
        self._other_columns: list[str] = []  # of the first document that lacks the text column
        self._by_file = card.source.kind == "text" and card.source.document == "file"
        self._columnar = card.source.kind in ("parquet", "hub")
        packed = any(piece.path.suffix in OPENERS for piece in self._pieces)
        sizes = (piece.path.stat().st_size for piece in self._pieces)
        self.total_bytes = None if self._columnar or packed else sum(sizes)
        self.total_documents: int | None = None

    def position(self) -> dict[str, Any]:
        """Where the last batch ended, as plain JSON values."""
        return {"read": self.read, "dataset": self._dataset.state_dict() if self._dataset is not None else None}

    def __iter__(self) -> Iterator[list[str]]:
        """Batches of texts. Raises UserError where the source cannot be read, has no such column, or a bad document."""
        readers = {"hub": self._hub, "parquet": self._parquet}
        try:
            for values in readers.get(self.card.source.kind, self._records)():
                texts = []
                for number, value in enumerate(values, self.read):
                    try:
                        texts.append(self._text(value))
                    except _BadDocument as bad:
                        self._leave_out(number, str(bad), bad.hint)
                self.read += len(values)
                self.manifest.documents += len(texts)
                self.manifest.text_bytes += sum(len(value) + 1 for value in values if isinstance(value, bytes))
                if self.read >= TRIED:
                    self._check_card()
                yield texts
            self._check_card()
        except UserError:
            raise
        except Exception as error:  # readers of compressed, remote and columnar files raise classes of many libraries
            source = self.card.source
            what = self._file or f"hub data set {source.dataset}"
            reason = str(error) or type(error).__name__
            raise UserError(
                f"{self.card.path}: reading {what} failed after document {self.read}: {reason}. Check that the "
                f"files are whole and of the kind {source.kind} (for a hub data set: the network, dataset, subset and "
                f"revision), then run again: it resumes."
            ) from error

    def _leave_out(self, number: int, reason: str, hint: str) -> None:
        found = f"{self._place(number)} is bad: {reason}{hint and f' ({hint})'}"
        if self.card.on_bad_document == "refuse":
            raise UserError(
                f"{self.card.path}: {found}. Correct it, or set on_bad_document: skip to leave such documents out and "
                f"count them."
            )
        if reason not in (*self.manifest.skipped, "empty", "blank line"):
            tqdm.write(f"note: {found}; such documents are left out and counted", file=sys.stderr)
        self.manifest.leave_out(reason)

    def _place(self, number: int) -> str:
        """Where a document is."""
        if not self._begins:
            return f"document {number} (counted from 0) of {self.card.source.dataset}"
        at = bisect_right(self._begins, number) - 1
        piece, unit = self._pieces[at], "row" if self._columnar else "line"
        return f"{piece.path}" + f", {unit} {number - self._begins[at] + piece.first_row + 1}" * (not self._by_file)

    def _check_card(self) -> None:
        """Refuse a card whose text column no document has."""
        if self._other_columns and not self.manifest.documents:
            check_column(self.card, self._other_columns)

    def _records(self) -> Iterator[list[bytes]]:
        """Lines without their line endings, or whole files with LF line endings."""

        def read() -> Iterator[bytes]:
            number = 0
            for path in (piece.path for piece in self._pieces):
                self._file, begun = path, False
                self._begins.append(number)
                with OPENERS.get(path.suffix, open)(path, "rb") as file:
                    lines = (line.removesuffix(b"\n").removesuffix(b"\r") for line in file)
                    for record in [file.read().replace(b"\r\n", b"\n")] if self._by_file else lines:
                        if not begun and record.strip():
                            begun = True
                            _check_look(self.card.source.kind, path, record)
                        number += 1
                        yield record

        records = islice(read(), self.read, None)
        return iter(lambda: list(islice(records, FILES if self._by_file else ROWS)), [])

    def _parquet(self) -> Iterator[list[Any]]:
        """The text column of parquet files, each of its own type."""
        import pyarrow.parquet  # type: ignore[import-untyped]

        column, before = self.card.text_column, self.read
        ends = list(accumulate((piece.rows for piece in self._pieces), initial=0))
        self._begins, self.total_documents = ends[:-1], ends[-1]
        numbered = zip(self._begins, self._pieces, strict=True)
        left = ((begin, piece) for begin, piece in numbered if begin + piece.rows > before)
        for path, of_file in groupby(left, key=lambda pair: pair[1].path):
            self._file = path
            with pyarrow.parquet.ParquetFile(path) as file:
                for begin, piece in of_file:
                    for batch in file.iter_batches(ROWS, row_groups=[piece.group], columns=[column]):
                        values = _as_bytes(batch.column(column)).to_pylist()
                        left_out = max(0, before - begin)
                        begin += len(values)
                        yield values[left_out:]

    def _hub(self) -> Iterator[list[Any]]:
        """The text column of a hub data set, streamed."""
        import datasets

        datasets.disable_progress_bars()
        source, column = self.card.source, self.card.text_column
        where: dict[str, Any] = {"path": source.dataset, "name": source.subset, "revision": source.revision}
        with tempfile.TemporaryDirectory(prefix="mup-lightning-") as cache:  # for lock files; the data are streamed
            load = partial(datasets.load_dataset, **where, split=source.split, streaming=True, cache_dir=cache)
            dataset = load()
            if (types := dataset.features or {}).get(column) == datasets.Value("null"):  # in the first file alone
                dataset = load(features=datasets.Features({**types, column: datasets.Value("string")}))
            check_column(self.card, dataset.column_names or [column])
            if split := (dataset.info.splits or {}).get(source.split):
                self.total_documents = split.num_examples // self.share[1]
            if self.share != WHOLE:
                share_of(range(dataset.num_shards), self.share)
                dataset = dataset.shard(self.share[1], self.share[0] - 1, contiguous=True)
            self._dataset = dataset.select_columns([column]).with_format("arrow")
            if self._state is not None:
                self._dataset.load_state_dict(self._state)
            for table in self._dataset.iter(ROWS):
                yield [value for chunk in table[column].chunks for value in _as_bytes(chunk).to_pylist()]

    def _text(self, value: Any) -> str:
        text = _decode(value).removeprefix("\ufeff")
        if self.card.source.kind == "jsonl":
            text = self._json_text(text)
        if reason := self.objection(text) if text.strip() else "empty":
            raise _BadDocument(reason)
        return text

    def _json_text(self, line: str) -> str:
        if not line.strip():
            raise _BadDocument("blank line")
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            raise _BadDocument("not JSON") from None
        if not isinstance(record, dict):
            raise _BadDocument("not a JSON object")
        if self.card.text_column not in record:
            self._other_columns = self._other_columns or list(record)
            raise _BadDocument(f"no {self.card.text_column}", f"only {', '.join(record) or 'nothing'}")
        return _decode(record[self.card.text_column])


def _check_look(kind: str, path: Path, record: bytes) -> None:
    """Refuse a file whose first record, not blank, is of another kind than the card says."""
    for pattern, look in (*_BEGINNINGS, *(_JSON_BEGINNINGS if kind == "jsonl" else ())):
        if re.match(pattern, record.removeprefix(codecs.BOM_UTF8)):
            raise UserError(f"{path}, of kind {kind}, looks like {look.format(path.name)}")


def _as_bytes(array: Any) -> Any:
    """An Arrow array of any type of string as one of bytes, in which invalid UTF-8 spoils a single document."""
    import pyarrow
    import pyarrow.compute  # type: ignore[import-untyped]

    types = pyarrow.types
    if isinstance(array, pyarrow.ExtensionArray):
        array = array.storage
    if types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if types.is_run_end_encoded(array.type):
        array = pyarrow.compute.run_end_decode(array)
    if types.is_string(array.type) or types.is_large_string(array.type) or types.is_string_view(array.type):
        array = array.cast(pyarrow.large_binary())
    return array


def _decode(value: Any) -> str:
    if value is None:
        raise _BadDocument("text is null")
    if not isinstance(value, bytes | str):
        raise _BadDocument("text is not a string")
    try:
        return (value.encode("utf-8") if isinstance(value, str) else value).decode("utf-8")
    except UnicodeEncodeError:
        raise _BadDocument("not UTF-8", "half of a surrogate pair") from None
    except UnicodeDecodeError as error:
        rest = error.object.decode("utf-8", "ignore")
        raise _BadDocument("not UTF-8", _LATIN if rest.isascii() else "") from None
