"""Reads tables of losses: results.csv of a sweep, any CSV with the same columns, or the published losses (JSON)."""

import csv
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from mup_lightning.errors import UserError
from mup_lightning.files import read_json

COLUMNS = ("parametrization", "axis", "size", "log2_value", "seed", "loss")
"""Columns that every table has."""

SETTINGS = ("parametrization", "optimizer", "branch_depth", "value", "width", "depth", "layer_norm")
"""Columns that separate groups of runs, with every column named like an option (`model.context`)."""

_REPEATED = {"recipe.optimizer", "recipe.parametrization", "recipe.branch_depth", "model.width", "model.depth"}
"""Columns named like options that repeat another column."""

_EXPECTED = f"the results.csv of a sweep, or the columns {', '.join(COLUMNS)} (an empty loss: diverged)"
_NOT_STOPPED = ("", "0", "0.0", "false", "no", "none", "nan")
_LARGEST_LOG2, _LARGEST_LOSS = 1e6, 1e9
"""Beyond these magnitudes neither a power of two nor a loss means anything."""


def read_table(path: Path, needed: Sequence[str] = COLUMNS, expected: str = _EXPECTED) -> pd.DataFrame:
    """Read a CSV file as text, however it was saved (byte order mark, any line endings, blank lines).

    Args:
        path: the file, or the folder whose results.csv it is.
        needed: columns that the table must have.
        expected: what the file should be, for the messages.

    Returns:
        Text cells. The index names each row for messages: "PATH, row 2".

    Raises:
        UserError: it cannot be read, is not a table, lacks a column or has one twice, or has no rows.
    """
    path = path / "results.csv" if path.is_dir() else path
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            rows = {f"{path}, row {reader.line_num}": row for row in reader if row}
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; expected {expected}") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a CSV file: {error}; expected {expected}") from None
    if not rows:
        raise UserError(f"{path} is empty; expected {expected}")
    head = rows.pop(next(iter(rows)))
    if missing := [column for column in needed if column not in head]:
        raise UserError(f"{path} lacks the columns {', '.join(missing)}; expected {expected}")
    if repeated := sorted({column for column in head if head.count(column) > 1}):
        raise UserError(f"{path} has the columns {', '.join(repeated)} more than once; expected each once")
    if ragged := [place for place, row in rows.items() if len(row) != len(head)]:
        raise UserError(f"{ragged[0]}: expected {len(head)} cells as in the heading")
    if not rows:
        raise UserError(f"{path} has no runs yet, only a heading")
    return pd.DataFrame(list(rows.values()), columns=head, index=list(rows), dtype=object)


def numbers(
    table: pd.DataFrame, column: str, expected: str, *, largest: float = math.inf, empty: bool = False
) -> pd.Series:
    """A column of a text table as numbers.

    Args:
        table: see `read_table`.
        column: its name.
        expected: what a cell should hold, for the message.
        largest: largest magnitude accepted.
        empty: accept cells that are empty, nan or infinite; they become NaN.

    Raises:
        UserError: naming the row, the cell and what was expected.
    """
    text = table[column].str.strip()
    found = text.map(_number).astype(float)
    wrong = ~(np.isfinite(found) & (found.abs() <= largest))
    if empty:
        wrong &= ~text.str.fullmatch("[-+]?(nan|inf|infinity)?", case=False)
    if wrong.any():
        where = wrong.idxmax()
        raise UserError(f"{where}: {column} is {table.loc[where, column]!r}; expected {expected}")
    return found.where(np.isfinite(found))


def read_losses(path: Path, needed: Sequence[str] = COLUMNS) -> pd.DataFrame:
    """Read a table of losses, one run a row.

    Rows at value 0, which has no logarithm, are left out with a note.

    Args:
        path: results.csv of a sweep or its folder, another CSV file, or the published losses as JSON.
        needed: columns that the table must have.

    Returns:
        The table's own columns as text, with these replaced or added:
        settings: tuple of (column, text) pairs that a run shares with those it is compared with: all of `SETTINGS` and
            of the options that vary, except axis, size and value. Width, depth and k are in one spelling (2 for 2.0).
        size: as text, in that spelling, too.
        position: log2 of the size; of "WxD", half of log2 W + log2 D, so that doubling both is one doubling.
        log2_value: log2 of the base value.
        loss: nats per token; NaN where the run has none.
        stopped: whether a run without a loss was given up as hopeless rather than diverged.
        steps: done; NaN where the table does not say.
        corpus, config_hash: empty where the table does not say.

    Raises:
        UserError: as `read_table`, or a cell is not what its column holds.
    """
    table = _published(path) if path.suffix == ".json" else read_table(path, needed)
    if "value" in table and (zero := (table["log2_value"] == "") & (table["value"] != "")).any():
        if zero.all():
            raise UserError(f"{path} has only runs at value 0; expected values above 0")
        print(f"note: runs left out at value 0, which has no logarithm: {zero.sum()}", file=sys.stderr)
        table = table[~zero]
    optional = {column: "" for column in ("stopped", "steps", "corpus", "config_hash") if column not in table}
    table = table.assign(**optional)
    sizes = [_size(text, place) for place, text in table["size"].items()]
    columns = [*SETTINGS, *options(table)]
    return table.assign(
        settings=[_settings(row, columns) for row in table.to_dict("records")],
        size=[size for size, _ in sizes],
        position=[position for _, position in sizes],
        log2_value=numbers(table, "log2_value", "a power of two, such as -7", largest=_LARGEST_LOG2),
        loss=numbers(table, "loss", "nats per token (empty: diverged)", largest=_LARGEST_LOSS, empty=True),
        stopped=~table["stopped"].str.strip().str.lower().isin(_NOT_STOPPED),
        steps=numbers(table, "steps", "a number", empty=True),
    )


def options(table: pd.DataFrame) -> list[str]:
    """Columns named like options (`model.context`), which vary in a sweep, except those that repeat another column."""
    return [column for column in table if "." in column and column not in _REPEATED]


def _published(path: Path) -> pd.DataFrame:
    """The published losses as a table; the index names the place of each loss for messages.

    Raises:
        UserError: it is not such a file.
    """
    expected = (
        '{"tables": {NAME: {parametrization, axis, optimizer, hyperparameter, layernorm, log2_values, '
        "validation_loss}}}, as the published losses have it, or a .csv"
    )
    try:
        tables = read_json(path, expected)["tables"].items()
        rows = [
            {
                "place": f"{path}, {name}, size {size}, 2^{value}",
                "parametrization": table["parametrization"],
                "axis": table["axis"],
                "size": size,
                "log2_value": str(value),
                "seed": "",
                "loss": "" if loss is None else str(loss),
                "optimizer": table["optimizer"],
                "value": table["hyperparameter"],
                "layer_norm": str(table["layernorm"]),
            }
            for name, table in tables
            for size, losses in table["validation_loss"].items()
            for value, loss in zip(table["log2_values"], losses, strict=True)
        ]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is not a table of losses; expected {expected}") from None
    return pd.DataFrame(rows, dtype=object).set_index("place")


def _settings(row: Mapping[str, str], columns: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """What separates groups of runs; see `read_losses`."""
    varies = {row.get("value"), row["axis"]} | ({"width", "depth"} if row["axis"] == "both" else set())
    own = {key: row[key] for key in columns if row.get(key) and key not in varies}
    return tuple((key, _spelling(text) if key in SETTINGS else text) for key, text in own.items())


def _size(text: str, where: str) -> tuple[str, float]:
    """A size in one spelling, and its position; see `read_losses`.

    Raises:
        UserError: it is not a size.
    """
    sides = [_number(side) for side in text.split("x")]
    if len(sides) > 2 or not all(0 < side < math.inf for side in sides):
        raise UserError(f"{where}: size is {text!r}; expected a number above 0, or WIDTHxDEPTH")
    return "x".join(map(_spelling, text.split("x"))), sum(map(math.log2, sides)) / len(sides)


def _spelling(text: str) -> str:
    """One spelling of every number, such as 2 for the 2.0 of a column that pandas has saved; other text as it is."""
    return f"{number:.15g}" if math.isfinite(number := _number(text)) else text


def _number(text: str) -> float:
    """The number in a cell; NaN where there is none."""
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan
