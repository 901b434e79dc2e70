"""The rows of a table of losses in CSV: what every report asks of one."""

from __future__ import annotations

import csv
import io
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from mup_lightning.errors import UserError

_ABSURD = 1e9
"""Nats per token that no training has."""

_LARGEST = 1e6
"""Of a power of two: beyond, there is nothing to be fitted, and floating point numbers end."""


def read_text(path: Path) -> str:
    """The text of a table.

    Raises:
        UserError: there is none, or it is empty or no text.
    """
    if not path.is_file():
        raise UserError(
            f"there is no {path}; expected the results.csv of a sweep (make sweep EXPERIMENT=NAME runs one into "
            f"runs/sweeps/NAME), or another table of losses"
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is no text; expected a table of losses in UTF-8") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if not text.strip():
        raise UserError(f"{path} is empty; expected a table of losses, such as the results.csv of a sweep")
    return text


def read_rows(text: str, path: Path, needed: Sequence[str], expected: str) -> list[tuple[str, dict[str, str]]]:
    """A place to name in messages, and the cells, of every row but those at value 0, which has no logarithm.

    Args:
        text: of the file.
        path: of the file.
        needed: columns.
        expected: what the file should be, for the messages.

    Raises:
        UserError: it is no CSV, lacks columns, has one twice, or has no rows.
    """
    try:
        return _rows(text, path, needed, expected)
    except csv.Error as error:
        raise UserError(f"{path} is no CSV: {error}; is a quotation mark open?") from None


def _rows(text: str, path: Path, needed: Sequence[str], expected: str) -> list[tuple[str, dict[str, str]]]:
    head = next(csv.reader(io.StringIO(text)))
    if missing := [column for column in needed if column not in head]:
        raise UserError(f"{path} lacks the columns {', '.join(missing)}; expected {expected}")
    if several := {column for column in head if head.count(column) > 1}:
        raise UserError(f"{path} has the columns {', '.join(sorted(several))} more than once; expected each once")
    if "config_hash" in head and "\n" in text and not text.endswith("\n"):
        text = text[: text.rfind("\n") + 1]
        print(f"note: {path}: the last row is left out: no end of line, so it may be half written", file=sys.stderr)
    rows, zeros = [], 0
    for number, row in enumerate(csv.DictReader(io.StringIO(text)), start=2):
        if None in row or None in row.values():
            raise UserError(f"{path}, row {number}: expected {len(head)} cells as in the heading")
        if row.get("value") and not row["log2_value"]:
            zeros += 1
        else:
            rows.append((f"{path}, row {number}", row))
    if zeros and not rows:
        raise UserError(f"{path} has runs at value 0 alone; expected values above 0")
    if zeros:
        print(f"note: {zeros} runs at value 0 are left out: a logarithmic axis has no place for it", file=sys.stderr)
    if not rows:
        raise UserError(f"{path} has no runs yet: a heading alone")
    return rows


def log2_value_of(row: dict[str, str], where: str) -> float:
    """Log2 of a row's base value. Raises UserError where there is none."""
    value = finite(row["log2_value"], f"{where}: log2_value")
    if abs(value) > _LARGEST:
        raise UserError(f"{where}: log2_value is {row['log2_value']!r}; expected a power of two, such as -7")
    return value


def loss_of(text: str, what: str) -> float | None:
    """The loss in a cell; None where there is none, or it is not finite.

    Raises:
        UserError: it is no number, or no loss.
    """
    loss = number(text, what) if text.strip() else math.nan
    if abs(loss) > _ABSURD and math.isfinite(loss):
        raise UserError(f"{what} is {text!r}; expected nats per token (empty: diverged)")
    return loss if math.isfinite(loss) else None


def finite(text: str, what: str) -> float:
    """The number in a cell. Raises UserError where there is none."""
    found = number(text, what)
    if not math.isfinite(found):
        raise UserError(f"{what} is {text!r}; expected a finite number")
    return found


def number(text: str, what: str) -> float:
    """The number in a cell, which may be inf or nan. Raises UserError where there is none."""
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{what} is {text!r}; expected a number") from None
