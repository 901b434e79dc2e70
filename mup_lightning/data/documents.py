"""Reading documents through Hugging Face datasets, streamed, with every bad document found by its number.

What datasets 5.2 does by itself with bad input (tried): its jsonl and text readers stop at the first invalid byte, the
jsonl reader also at a broken line or a lone surrogate, none of them naming the line; in compressed files they ignore
the encoding asked for; and iterating parquet stops at an invalid byte. So lines and files reach it as bytes, through a
generator (streams.py), parquet columns are taken as bytes, and decoding is ours, one document at a time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mup_lightning.data.card import Card
from mup_lightning.data.streams import COMPRESSED, records
from mup_lightning.errors import UserError

ROWS = {"file": 4, "line": 512, "jsonl": 128, "parquet": 256, "hub": 256}  # documents in memory at a time


@dataclass(frozen=True)
class Document:
    """One document of a source: its text, or the reason why it has none. `size` counts its bytes as they were read."""

    index: int
    text: str | None
    problem: str | None
    size: int


class DocumentReader:
    """The documents of a card in order, in small batches, from any place where a former reader stopped.

    Args:
        card: The data set.
        files: Its local files (empty for a hub data set).
        revision: Commit of a hub data set.
        cache: Scratch folder for the lock files of datasets.
    """

    def __init__(self, card: Card, files: list[Path], revision: str | None, cache: str) -> None:
        self.card, self.files = card, files
        kind = card.source.kind
        self.total_bytes: int | None = None
        if kind in ("jsonl", "text") and not any(path.suffix in COMPRESSED for path in files):
            self.total_bytes = sum(path.stat().st_size for path in files)
        self.total_documents = _parquet_rows(card, files) if kind == "parquet" else None
        self._rows = ROWS[card.source.document if kind == "text" else kind]
        self._column = card.text_column if kind in ("parquet", "hub") else "bytes"
        try:
            self._dataset = self._open(kind, revision, cache).with_format("arrow")
        except (OSError, ValueError, ImportError, RuntimeError) as error:
            raise UserError(self._failed(error, 0)) from error

    def batches(self, first: int = 0, state: dict[str, Any] | None = None) -> Iterator[list[Document]]:
        """Batches of documents, numbered from `first`; `state` is what position() gave after document first - 1.

        Raises UserError where a file cannot be read (damaged, or a column is missing).
        """
        if state is not None:
            self._dataset.load_state_dict(state)
        tables = self._dataset.iter(self._rows)
        index = first
        while True:
            try:
                table = next(tables, None)
                values = None if table is None else self._bytes(table)
            # Readers of compressed, remote and columnar files raise what they like: OSError, EOFError, LZMAError, ...
            except Exception as error:
                raise error if isinstance(error, UserError) else UserError(self._failed(error, index)) from error
            if values is None:
                return
            yield [self._document(index + i, value) for i, value in enumerate(values)]
            index += len(values)

    def position(self) -> dict[str, Any]:
        """Where the last batch ended, as plain JSON values."""
        state: dict[str, Any] = self._dataset.state_dict()
        return state

    def _open(self, kind: str, revision: str | None, cache: str) -> Any:
        import datasets
        from datasets.data_files import DataFilesDict, DataFilesList
        from datasets.packaged_modules.generator.generator import Generator

        datasets.disable_progress_bars()
        source = self.card.source
        options: dict[str, Any] = {"streaming": True, "cache_dir": cache}
        if kind == "hub":
            local = Path(source.dataset or "").is_dir()
            where = {} if local else {"revision": revision}
            dataset = datasets.load_dataset(source.dataset, source.subset, split=source.split, **where, **options)
            found = dataset.column_names
            if found is not None and self.card.text_column not in found:
                raise UserError(_no_column(self.card, found))
            info = (dataset.info.splits or {}).get(source.split)
            self.total_documents = info.num_examples if info else None
            return dataset.select_columns([self.card.text_column])
        names = [str(path.resolve()) for path in self.files]
        if kind == "parquet":
            # A DataFilesDict is taken as it is; plain names are globbed again, and "[" in a folder matches nothing.
            options["data_files"] = DataFilesDict(train=DataFilesList(names, [(name,) for name in names]))
            columns = [self.card.text_column]
            return datasets.load_dataset("parquet", split="train", columns=columns, batch_size=self._rows, **options)
        by_line = kind == "jsonl" or source.document == "line"
        features = datasets.Features({"bytes": datasets.Value("large_binary")})
        # IterableDataset.from_generator is this builder, but it always puts its lock file into the user's cache.
        builder = Generator(
            cache_dir=cache, features=features, generator=records, gen_kwargs={"files": names, "by_line": by_line}
        )
        return builder.as_streaming_dataset(split="train")

    def _bytes(self, table: Any) -> list[Any]:
        """The rows of an arrow table as bytes, None, or (for a column that is not text) what they are."""
        import pyarrow  # type: ignore[import-untyped]

        column = table[self._column]
        if pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type):
            binary = pyarrow.large_binary() if pyarrow.types.is_large_string(column.type) else pyarrow.binary()
            column = column.cast(binary)
        rows: list[Any] = column.to_pylist()
        return rows

    def _document(self, index: int, value: Any) -> Document:
        size = len(value) + 1 if isinstance(value, bytes) else 0
        text, problem = (None, "text is null") if value is None else _decode(value)
        if problem is None and self.card.source.kind == "jsonl":
            text, problem = self._from_json(index, text or "")
        if problem is None and not (text and text.strip()):
            problem = "empty"
        return Document(index, None if problem else text, problem, size)

    def _from_json(self, index: int, line: str) -> tuple[str | None, str | None]:
        if not line.strip():
            return None, "blank line"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            return None, "not JSON"
        if not isinstance(record, dict):
            return None, "not a JSON object"
        if self.card.text_column not in record:
            if index == 0:  # not one bad document, but a card that does not fit
                raise UserError(_no_column(self.card, list(record)))
            return None, f"no {self.card.text_column}"
        text = record[self.card.text_column]
        if text is None:
            return None, "text is null"
        if not isinstance(text, str):
            return None, "text is not a string"
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:  # an escaped surrogate without its other half
            return None, "not UTF-8"
        return text, None

    def _failed(self, error: Exception, index: int) -> str:
        source = self.card.source
        what = ", ".join(str(path) for path in self.files[:3]) if self.files else f"hub data set {source.dataset}"
        if source.kind == "hub":
            mend = "Check the network, source.dataset, subset and revision, then run again: it resumes."
        else:
            mend = "Check that the files are whole and of the kind the card says."
        reason = str(error) or type(error).__name__
        return f"{self.card.path}: reading {what} failed after document {index}: {reason}. {mend}"


def _decode(value: Any) -> tuple[str | None, str | None]:
    if not isinstance(value, bytes):
        return None, "text is not a string"
    try:
        return value.decode("utf-8").removeprefix("\ufeff"), None
    except UnicodeDecodeError:
        return None, "not UTF-8"


def _parquet_rows(card: Card, files: list[Path]) -> int:
    import pyarrow.parquet  # type: ignore[import-untyped]

    rows = 0
    for path in files:
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                names, count = file.schema_arrow.names, file.metadata.num_rows
        except (OSError, ValueError) as error:
            raise UserError(f"{card.path}: {path} is no readable parquet file: {error}.") from error
        if card.text_column not in names:
            raise UserError(_no_column(card, names, path))
        rows += count
    return rows


def _no_column(card: Card, found: list[str], path: Path | None = None) -> str:
    of = f"{path} has" if path else "the documents have"
    return f"{card.path}: text_column is {card.text_column!r}, but {of} only {', '.join(found) or 'nothing'}. Set it."
