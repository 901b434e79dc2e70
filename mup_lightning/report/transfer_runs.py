"""Reading losses over sizes and base values: a sweep's table, a simple table, or the published tables."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mup_lightning.errors import UserError

NEEDED = ("parametrization", "axis", "size", "log2_value", "seed", "loss")
"""Columns that every table has. Here an empty loss is a divergence."""

SETTINGS = ("optimizer", "branch_depth", "value", "width", "depth", "layer_norm")
"""Columns that tell groups apart where a table has them, beside all that are named like options (`model.context`)."""

_ABSURD = 1e9
"""Nats per token that no training has."""

_NOT_STOPPED = ("", "0", "0.0", "false", "no", "none", "nan")
"""All else says why."""

SAID_ELSEWHERE = {
    "recipe.optimizer",
    "recipe.parametrization",
    "recipe.branch_depth",
    "model.width",
    "model.depth",
    "seed",
}
"""Columns named like options that other columns repeat."""


@dataclass(frozen=True)
class Run:
    """One row.

    Attributes:
        settings: column -> text of what it shares with the runs that it is compared with: the parametrization first,
            then all but axis, size, value and seed.
        axis: width, depth, both, or any other word.
        size: as the table has it, every number in one spelling (64 for 64.0).
        position: log2 of the size; of "WxD", half of log2 W + log2 D, so that doubling both is one doubling.
        value: log2 of the base value.
        seed: as the table has it.
        loss: nats per token; None: there is none.
        stopped: there is none because the run was given up as hopeless, not because it diverged.
        steps: done, as the table has it; empty where it does not say.
        corpus: manifest's hash; empty where the table does not say.
        hash: of the configuration; empty where the table does not say.
    """

    settings: dict[str, str]
    axis: str
    size: str
    position: float
    value: float
    seed: str
    loss: float | None
    stopped: bool = False
    steps: str = ""
    corpus: str = ""
    hash: str = ""


def read_runs(path: Path) -> list[Run]:
    """Read results.csv of a sweep, a CSV file with the columns `NEEDED`, or the published tables (JSON).

    Raises:
        UserError: it cannot be read, lacks columns, has no rows, or a cell is no number.
    """
    if path.is_dir():
        path = path / "results.csv"
    if not path.is_file():
        raise UserError(
            f"there is no {path}; expected the results.csv of a sweep (make sweep EXPERIMENT=NAME runs one into "
            f"runs/sweeps/NAME), or another table of losses"
        )
    if path.suffix not in (".csv", ".json"):
        raise UserError(f"{path} is of an unknown kind; expected a .csv, or the published losses as .json")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is no text; expected a .csv or .json in UTF-8") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if not text.strip():
        raise UserError(f"{path} is empty; expected a table with the columns {', '.join(NEEDED)}")
    try:
        runs = _from_csv(text, path) if path.suffix == ".csv" else _from_published(text, path)
    except csv.Error as error:
        raise UserError(f"{path} is no CSV: {error}; is a quotation mark open?") from None
    if not runs:
        raise UserError(f"{path} has no runs yet: a heading alone")
    return runs


def _from_csv(text: str, path: Path) -> list[Run]:
    head = next(csv.reader(io.StringIO(text)))
    missing = [column for column in NEEDED if column not in head]
    if missing:
        raise UserError(
            f"{path} lacks the columns {', '.join(missing)}; expected {', '.join(NEEDED)} (an empty loss: diverged)"
        )
    if several := {column for column in head if head.count(column) > 1}:
        raise UserError(f"{path} has the columns {', '.join(sorted(several))} more than once; expected each once")
    if "config_hash" in head and "\n" in text and not text.endswith("\n"):
        text = text[: text.rfind("\n") + 1]
        print(f"note: {path}: the last row is left out: no end of line, so it may be half written", file=sys.stderr)
    runs, zeros = [], 0
    for number, row in enumerate(csv.DictReader(io.StringIO(text)), start=2):
        if None in row or None in row.values():
            raise UserError(f"{path}, row {number}: expected {len(head)} cells as in the heading")
        if row.get("value") and not row["log2_value"]:
            zeros += 1
            continue
        runs.append(_from_row(row, f"{path}, row {number}"))
    if zeros and not runs:
        raise UserError(f"{path} has runs at value 0 alone; expected values above 0")
    if zeros:
        print(f"note: {zeros} runs at value 0 are left out: a logarithmic axis has no place for it", file=sys.stderr)
    return runs


def _from_row(row: dict[str, str], where: str) -> Run:
    axis = row["axis"]
    columns = [*SETTINGS, *(column for column in row if "." in column and column not in SAID_ELSEWHERE)]
    left_out = {row.get("value"), axis} | ({"width", "depth"} if axis == "both" else set())
    settings = {column: row[column] for column in columns if row.get(column) and column not in left_out}
    return Run(
        settings={"parametrization": row["parametrization"]} | settings,
        axis=axis,
        size=_size(row["size"]),
        position=_position(row["size"], where),
        value=finite(row["log2_value"], f"{where}: log2_value"),
        seed=row["seed"],
        loss=loss_of(row["loss"], f"{where}: loss"),
        stopped=row.get("stopped", "").strip().lower() not in _NOT_STOPPED,
        steps=_steps(row.get("steps", ""), where),
        corpus=row.get("corpus", ""),
        hash=row.get("config_hash", ""),
    )


def _from_published(text: str, path: Path) -> list[Run]:
    try:
        tables = json.loads(text)["tables"]
        return [run for table in tables.values() for run in _from_table(table, path)]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f'{path} is no table of losses: expected {{"tables": {{name: {{parametrization, axis, optimizer, '
            f"hyperparameter, layernorm, log2_values, validation_loss}}}}}}, as the published losses have it, or a .csv"
        ) from None


def _from_table(table: dict[str, Any], path: Path) -> list[Run]:
    settings = {
        "parametrization": table["parametrization"],
        "optimizer": table["optimizer"],
        "value": table["hyperparameter"],
        "layer_norm": str(table["layernorm"]),
    }
    axis, where = table["axis"], str(path)
    return [
        Run(settings, axis, _size(size), _position(size, where), float(value), "", _known(loss, where, size))
        for size, losses in table["validation_loss"].items()
        for value, loss in zip(table["log2_values"], losses, strict=True)
    ]


def _known(loss: Any, where: str, size: str) -> float | None:
    """A loss of the published tables; None is a diverged run."""
    return None if loss is None else loss_of(str(loss), f"{where}: a loss of size {size}")


def loss_of(text: str, what: str) -> float | None:
    """The loss in a cell; None where there is none, or it is not finite.

    Raises:
        UserError: it is no number, or no loss.
    """
    loss = _number(text, what) if text.strip() else math.nan
    if abs(loss) > _ABSURD and math.isfinite(loss):
        raise UserError(f"{what} is {text!r}; expected nats per token (empty: diverged)")
    return loss if math.isfinite(loss) else None


def _steps(text: str, where: str) -> str:
    if not text.strip():
        return ""
    finite(text, f"{where}: steps")
    return _whole(text)


def _size(text: str) -> str:
    """One spelling of every number: 64.0 and 6.4e1 are 64. What is none is left to `_position` to refuse."""
    parts = [part.strip() for part in text.split("x")]
    return "x".join(_whole(part) for part in parts)


def _whole(text: str) -> str:
    try:
        number = float(text)
    except ValueError:
        return text
    return str(int(number)) if number.is_integer() else text


def _position(size: str, where: str) -> float:
    parts = [_number(part, f"{where}: size") for part in size.split("x")]
    if len(parts) > 2 or not all(part > 0 and math.isfinite(part) for part in parts):
        raise UserError(f"{where}: size is {size!r}; expected a number above 0, or WIDTHxDEPTH")
    return sum(map(math.log2, parts)) / len(parts)


def finite(text: str, what: str) -> float:
    """The number in a cell. Raises UserError where there is none."""
    number = _number(text, what)
    if not math.isfinite(number):
        raise UserError(f"{what} is {text!r}; expected a finite number")
    return number


def _number(text: str, what: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{what} is {text!r}; expected a number") from None
