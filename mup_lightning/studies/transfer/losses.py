"""Reads tables of losses: results.csv of a sweep, or any CSV with the same columns."""

import codecs
import csv
import io
import math
import re
import sys
from collections.abc import Hashable, Sequence
from pathlib import Path

import pandas as pd

from mup_lightning.errors import UserError
from mup_lightning.files import differs

COLUMNS = ("parametrization", "axis", "size", "log2_value", "seed", "loss")  # columns that every table has
LOSS = "nats per token (empty: diverged)"  # what a cell of a loss holds

SETTINGS = ("parametrization", "optimizer", "branch_depth", "value", "width", "depth", "layer_norm")
"""Columns that separate groups of runs, with every column named like an option (`model.context`)."""

_REPEATED = {"recipe.optimizer", "recipe.parametrization", "recipe.branch_depth", "model.width", "model.depth"}
"""Columns named like options that repeat another column."""

_VARY = {
    "both": {"width", "depth"},
    "tokens": {"trainer.max_steps"},
    "batch": {"data.batch_size", "trainer.max_steps"},
}
"""Axis -> columns besides its own that vary along it. Runs over the batch see as many tokens, so their steps vary."""

_EXPECTED = f"the results.csv of a sweep, or the columns {', '.join(COLUMNS)} (an empty loss: diverged)"
_POINTED = re.compile(r"\s*[+-]?\d+\.\d+\s*")
_DECIMAL_COMMA = re.compile(r"^(\s*[+-]?\d+),(\d+(?:[eE][+-]?\d+)?\s*)$")
_LARGEST = 1e9  # beyond this magnitude neither a power of two nor a loss means anything


def read_table(path: Path, needed: Sequence[str] = COLUMNS) -> pd.DataFrame:
    """Read a CSV file as text, however a spreadsheet saved it (byte order mark, semicolons, decimal commas, UTF-16).

    `path` may be the folder whose results.csv is meant, and `needed` are columns that must be there. Returns text
    cells, numbers with a decimal point; the index names each row for messages: "PATH, row 2". Raises UserError where
    it cannot be read, is not a table, lacks a column or has one twice, or has no rows.
    """
    path = path / "results.csv" if path.is_dir() else path
    try:
        data = path.read_bytes()
        text = data.decode("utf-16" if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig")
        separator = max(",;\t", key="".join(text.strip().splitlines()[:1]).count)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        rows = {f"{path}, row {reader.line_num}": row for row in reader if any(map(str.strip, row))}
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise UserError(f"{path} cannot be read as CSV: {reason}; expected {_EXPECTED}") from None
    if differs(path):
        print(f"note: {path} is not what a sweep wrote (SHA256SUMS): edited, damaged, or unfinished", file=sys.stderr)
    head = [cell.strip() for cell in rows.pop(next(iter(rows)))] if rows else []
    while head and not head[-1]:
        head.pop()
    if wrong := [column for column in dict.fromkeys([*needed, *head]) if head.count(column) != 1]:
        raise UserError(f"{path} lacks the columns {', '.join(wrong)}, or has them twice; expected {_EXPECTED}")
    for place, row in rows.items():
        if len(row) < len(head) or any(map(str.strip, row[len(head) :])):
            raise UserError(f"{place}: expected {len(head)} cells as in the heading")
    if not rows:
        raise UserError(f"{path} has no runs yet, only a heading")
    cells = [row[: len(head)] for row in rows.values()]
    if separator != "," and not any(_POINTED.fullmatch(cell) for row in cells for cell in row):
        cells = [[_DECIMAL_COMMA.sub(r"\1.\2", cell) for cell in row] for row in cells]
    return pd.DataFrame(cells, columns=head, index=list(rows), dtype=object)


def numbers(table: pd.DataFrame, column: str, expected: str, *, empty: bool = False) -> pd.Series:
    """A text column as numbers; with `empty`, cells that are empty, nan or infinite are NaN. UserError names a row."""
    text = table[column].str.strip()
    found = pd.to_numeric(text, errors="coerce").astype(float)
    found = found.where(found.abs() <= _LARGEST)
    wrong = found.isna() & ~(text.str.lower().isin(["", "nan", "inf", "+inf", "-inf"]) & empty)
    if wrong.any():
        where = wrong.idxmax()
        raise UserError(f"{where}: {column} is {table.loc[where, column]!r}; expected {expected}")
    return found


def read_losses(path: Path, needed: Sequence[str] = COLUMNS) -> pd.DataFrame:
    """Read a table of losses, one run a row.

    Rows at value 0, which has no logarithm, are left out with a note. Raises UserError as `read_table`, or where a cell
    is not what its column holds. Returns the table's own columns as text, with these replaced or added:

        settings: tuple of (column, text) pairs that a run shares with those it is compared with: all of `SETTINGS` and
            of the options that vary, except axis, size and value; over the batch, the tokens of the run in place of its
            steps. Width, depth and k are in one spelling (2 for 2.0).
        size: as text, in that spelling, too.
        position: log2 of the size; of "WxD", half of log2 W + log2 D, so that doubling both is one doubling.
        log2_value: log2 of the base value.
        loss: nats per token; NaN where the run diverged.
        steps: done; NaN where the table does not say.
        corpus, config_hash: empty where the table does not say.
    """
    table = read_table(path, needed)
    if "value" in table and (zero := (table["log2_value"] == "") & (table["value"] != "")).any():
        if zero.all():
            raise UserError(f"{path} has only runs at value 0; expected values above 0")
        print(f"note: runs left out at value 0, which has no logarithm: {zero.sum()}", file=sys.stderr)
        table = table[~zero]
    table = table.assign(**{column: "" for column in ("steps", "corpus", "config_hash") if column not in table})
    sides = table["size"].str.split("x").map(lambda sides: [number(side) for side in sides])
    for where, own in sides.items():
        if len(own) > 2 or not all(0 < side < math.inf for side in own):
            found = table.loc[where, "size"]
            raise UserError(f"{where}: size is {found!r}; expected a number above 0, or WIDTHxDEPTH")
    columns = [column for column in (*SETTINGS, *options(table)) if column in table]
    return table.assign(
        settings=[_settings(row, columns) for row in table.to_dict("records")],
        size=["x".join(f"{side:.15g}" for side in own) for own in sides],
        position=[sum(map(math.log2, own)) / len(own) for own in sides],
        log2_value=numbers(table, "log2_value", "a power of two, such as -7"),
        loss=numbers(table, "loss", LOSS, empty=True),
        steps=numbers(table, "steps", "a number", empty=True),
    )


def refuse_different(runs: pd.DataFrame, families: Sequence[Hashable], columns: Sequence[str]) -> None:
    """Raise UserError where runs of one family, which are compared, differ in one of these columns."""
    trained = runs.assign(family=families)[runs["loss"].notna()]
    for column in columns:
        known = trained[trained[column].replace("", None).notna()]
        for _, values in known.groupby("family", sort=False)[column]:
            if values.nunique() > 1:
                each = " and ".join(f"{value:.12}".removesuffix(".0") for value in values.unique())
                raise UserError(
                    f"runs that are compared differ in {column} ({each}), so their losses cannot be compared: make a "
                    f"table of each, or add a column of the option behind it, such as data.path or trainer.max_steps"
                )


def refuse_twice(runs: pd.DataFrame) -> None:
    """Raise UserError for two runs of one size, value and seed, or two shapes at one place, such as 64x4 and 128x2."""
    for sizes in runs.groupby("position")["size"].unique():
        if len(sizes) > 1:
            raise UserError(
                f"{' and '.join(sizes)} would be one size: expected models whose width and depth grow together, such "
                f"as 64x2 and 128x4; make a table of those, or of one axis at a time"
            )
    keys = ["position", "log2_value", "seed"]
    if (again := runs.duplicated(keys)).any():
        second = runs[again].iloc[0]
        first = runs[(runs[keys] == second[keys]).all(axis=1)].iloc[0]
        other = ", of another configuration, which no column shows" * (first["config_hash"] != second["config_hash"])
        raise UserError(
            f"{second.name} has size {second['size']}, 2^{second['log2_value']:g}, seed {second['seed'] or '(none)'} "
            f"again (before: {first.name}){other}; keep one of the two rows"
        )


def options(table: pd.DataFrame) -> list[str]:
    """Columns named like options (`model.context`), which vary in a sweep, except those that repeat another column."""
    return [column for column in table if "." in column and column not in _REPEATED]


def _settings(row: dict[str, str], columns: Sequence[str]) -> tuple[tuple[str, str], ...]:
    varies = {row.get("value"), row["axis"]} | _VARY.get(row["axis"], set())
    own = {key: row[key] for key in columns if row[key] and key not in varies}
    if row["axis"] == "batch" and (steps := number(row.get("trainer.max_steps", ""))) > 0:
        own["tokens"] = f"{steps * number(row['size']):.15g}"
    return tuple((key, spelling(text) if key in SETTINGS else text) for key, text in own.items())


def spelling(value: object) -> str:
    """One spelling of every number, such as 2 for the 2.0 of a column that pandas has saved; other text as it is."""
    return f"{found:.15g}" if math.isfinite(found := number(str(value))) else str(value)


def number(text: str) -> float:
    """The number in a cell; NaN where there is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan
