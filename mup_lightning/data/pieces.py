"""What a source consists of, and how several processes share it: whole files, or row groups of Parquet files."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from mup_lightning.data.card import Card
from mup_lightning.errors import UserError

T = TypeVar("T")
WHOLE = (1, 1)
"""The share of a source that is all of it: number 1 of 1."""


class Piece(NamedTuple):
    """A whole file, or one row group of a Parquet file; a share of a source has whole pieces."""

    path: Path
    group: int = 0
    first_row: int = 0
    rows: int = 0


def pieces(card: Card, files: Sequence[Path], share: tuple[int, int] = WHOLE) -> Sequence[Piece]:
    """A share of the local pieces of a card, in order. Raises UserError where there are fewer pieces than shares."""
    if card.source.kind != "parquet":
        return share_of([Piece(path) for path in files], share)
    import pyarrow.parquet  # type: ignore[import-untyped]

    found: list[Piece] = []
    for path in files:
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                names, sizes = (
                    file.schema_arrow.names,
                    [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)],
                )
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"{card.path}: {path} is no whole Parquet file: {error}") from None
        check_column(card, names, path)
        found += [Piece(path, group, sum(sizes[:group]), rows) for group, rows in enumerate(sizes)]
    return share_of(found, share)


def share_of(items: Sequence[T], share: tuple[int, int]) -> Sequence[T]:
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
