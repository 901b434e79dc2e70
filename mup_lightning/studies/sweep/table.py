"""The table of results: tidy, appended whole row by whole row, readable at any time."""

from __future__ import annotations

import csv
import io
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mup_lightning.errors import UserError
from mup_lightning.studies.sweep.grid import Cell, look_up
from mup_lightning.studies.sweep.locks import Locks

COLUMNS = """
    parametrization optimizer branch_depth width depth axis size value log2_value seed loss train_loss unigram_loss
    steps tokens parameters seconds tokens_per_second diverged stopped early_loss corpus config_hash
""".split()
"""Of every table, in order; the keys that vary in the sweep follow."""


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        loss: of the validation after the last step, nats per token; None: diverged, or stopped early.
        train_loss: mean over the last tenth of the steps.
        steps: done.
        parameters: of the model.
        seconds: of the run, without the worker's start.
        tokens_per_second: in training steps alone.
        diverged: why there is no loss; empty where there is one.
        stopped: why the run was given up as hopeless; empty where it was not.
        early_loss: training loss when that was judged.
    """

    loss: float | None
    train_loss: float | None
    steps: int
    parameters: int
    seconds: float
    tokens_per_second: float
    diverged: str = ""
    stopped: str = ""
    early_loss: float | None = None


class Table:
    """FOLDER/results.csv.

    One file for all tasks of an array, under a lock, rather than a file each: whoever reads it needs no knowledge of
    how it came about. A row is one write at the end of the file; what a power cut left of a row is cut off before the
    next one.

    Args:
        folder: of the sweep.
        locks: of the same folder.
        varied: dotted keys that vary.
    """

    def __init__(self, folder: Path, locks: Locks, varied: list[str]) -> None:
        self.path, self.locks = folder / "results.csv", locks
        self.columns = list(dict.fromkeys(COLUMNS + varied))  # seed stands in both

    def rows(self) -> list[dict[str, str]]:
        """See `read_rows`."""
        return read_rows(self.path)

    def append(self, cell: Cell, outcome: Outcome) -> None:
        """Append the row of a finished run, or one for every axis that its configuration stands on."""
        with self.locks.table():
            columns = self._prepare()
            text = _csv(columns, [row(cell, axis, outcome) for axis in cell.axes], header=False)
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND)
            try:
                os.write(descriptor, text.encode())
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def complete(self, cells: list[Cell]) -> None:
        """Give finished configurations the rows that they lack.

        A run that was done for one axis, or under another swept value, may be asked for on a further one: its numbers
        are there already. A key that varies only now is filled in too, or its rows would stand in groups of their own.
        """
        by_hash = {cell.hash: cell for cell in cells}
        with self.locks.table():
            rows: list[dict[str, Any]] = list(self.rows())
            finished = {row["config_hash"]: row for row in rows if row["config_hash"] in by_hash}
            present = {(row["config_hash"], row["axis"], row["value"]) for row in rows}
            wanted = [
                row(by_hash[name], axis, _outcome(one))
                for name, one in finished.items()
                for axis in by_hash[name].axes
                if (name, axis, by_hash[name].value) not in present
            ]
            filled = [_filled(one, by_hash.get(one["config_hash"])) for one in rows]
            if wanted or filled != rows:
                self._replace(self._prepare(), filled + wanted)

    def _prepare(self) -> list[str]:
        """Make the file ready for a row: whole rows only, and a column for every key. Returns its columns."""
        present = self.path.read_bytes() if self.path.exists() else b""
        whole = present[: present.rfind(b"\n") + 1]
        columns = next(csv.reader([whole.decode().split("\n", 1)[0]]), [])
        wanted = columns + [column for column in self.columns if column not in columns]
        if wanted != columns or whole != present:
            self._replace(wanted, self.rows())
        return wanted

    def _replace(self, columns: list[str], rows: list[dict[str, Any]]) -> None:
        unfinished = self.path.with_suffix(".unfinished")
        with unfinished.open("w", encoding="utf-8") as file:
            file.write(_csv(columns, rows, header=True))
            file.flush()
            os.fsync(file.fileno())  # or a power cut may leave the new name with nothing in it
        unfinished.replace(self.path)


def read_rows(path: Path) -> list[dict[str, str]]:
    """All whole rows of a table, as text; none where there is no table yet.

    Raises:
        UserError: the file is no table of a sweep.
    """
    if not path.exists():
        return []
    mend = "choose another folder (--out), or move it away, and the sweep begins anew"
    try:
        text = path.read_text(encoding="utf-8")
        rows = list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1])))
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror}; expected the results.csv of a sweep; {mend}"
        ) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is damaged: {error}; expected the results.csv of a sweep; {mend}") from None
    if rows and "config_hash" not in rows[0]:
        raise UserError(f"{path} has no column config_hash, so no sweep wrote it; choose another folder (--out)")
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise UserError(
                f"{path} is damaged: row {number} has not as many cells as the heading; delete the row, and the sweep "
                f"runs that configuration again"
            )
    return rows


def row(cell: Cell, axis: str, outcome: Outcome) -> dict[str, Any]:
    """The row of a configuration on an axis. A loss is empty where the run diverged or was stopped."""
    config = cell.config
    width, depth, value = config.model.width, config.model.depth, float(look_up(config, cell.value))
    tokens = outcome.steps * config.data.batch_size * config.model.context
    return cell.varied | {
        "parametrization": config.recipe.parametrization,
        "optimizer": config.recipe.optimizer,
        "branch_depth": config.recipe.branch_depth if config.recipe.parametrization == "mup" else None,
        "width": width,
        "depth": depth,
        "axis": axis,
        "size": {"width": width, "depth": depth}.get(axis, f"{width}x{depth}"),
        "value": cell.value,
        "log2_value": math.log2(value) if value > 0 else None,
        "seed": config.seed,
        "loss": outcome.loss,
        "train_loss": outcome.train_loss,
        "unigram_loss": cell.unigram_loss,
        "steps": outcome.steps,
        "tokens": tokens,
        "parameters": outcome.parameters,
        "seconds": round(outcome.seconds, 3),
        "tokens_per_second": round(outcome.tokens_per_second, 1),
        "diverged": outcome.diverged,
        "stopped": outcome.stopped,
        "early_loss": outcome.early_loss,
        "corpus": cell.corpus,
        "config_hash": cell.hash,
    }


def _outcome(found: dict[str, str]) -> Outcome:
    """The outcome that a row was written from."""
    loss, train_loss, early_loss = (
        float(found[key]) if found[key] else None for key in ("loss", "train_loss", "early_loss")
    )
    return Outcome(
        loss=loss,
        train_loss=train_loss,
        steps=int(found["steps"]),
        parameters=int(found["parameters"]),
        seconds=float(found["seconds"]),
        tokens_per_second=float(found["tokens_per_second"]),
        diverged=found["diverged"],
        stopped=found["stopped"],
        early_loss=early_loss,
    )


def _filled(found: dict[str, Any], cell: Cell | None) -> dict[str, Any]:
    """A row with the varying keys that it says nothing of."""
    varied = {} if cell is None else cell.varied
    return found | {key: value for key, value in varied.items() if not found.get(key) and value not in (None, "")}


def _csv(columns: list[str], rows: list[dict[str, Any]], *, header: bool) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", restval="")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
