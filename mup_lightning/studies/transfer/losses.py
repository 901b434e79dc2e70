"""Reading losses over sizes and base values: a sweep's table, a simple table, or the published tables."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mup_lightning.errors import UserError
from mup_lightning.studies.transfer.results_csv import finite, log2_value_of, loss_of, number, read_rows, read_text

NEEDED = ("parametrization", "axis", "size", "log2_value", "seed", "loss")
"""Columns that every table has. Here an empty loss is a divergence."""

SETTINGS = ("optimizer", "branch_depth", "value", "width", "depth", "layer_norm")
"""Columns that tell groups apart where a table has them, beside all that are named like options (`model.context`)."""

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
    text = read_text(path)
    if path.suffix == ".csv":
        expected = f"{', '.join(NEEDED)} (an empty loss: diverged)"
        return [_from_row(row, where) for where, row in read_rows(text, path, NEEDED, expected)]
    if path.suffix != ".json":
        raise UserError(f"{path} is of an unknown kind; expected a .csv, or the published losses as .json")
    return _from_published(text, path)


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
        value=log2_value_of(row, where),
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
    parts = [number(part, f"{where}: size") for part in size.split("x")]
    if len(parts) > 2 or not all(part > 0 and math.isfinite(part) for part in parts):
        raise UserError(f"{where}: size is {size!r}; expected a number above 0, or WIDTHxDEPTH")
    return sum(map(math.log2, parts)) / len(parts)
