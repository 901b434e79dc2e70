"""What stands beside the table: what each hash stands for, and which configurations have failed."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mup_lightning.errors import UserError
from mup_lightning.studies.sweep.grid import Cell
from mup_lightning.studies.sweep.locks import Locks
from mup_lightning.training.checkpoint import plain


class Record:
    """A JSON file of the sweep's folder: hash -> anything. Several sweeps may write to it.

    Args:
        folder: of the sweep.
        name: of the file.
        locks: of the same folder.
    """

    def __init__(self, folder: Path, name: str, locks: Locks) -> None:
        self.path, self.locks = folder / name, locks

    def _present(self) -> dict[str, Any]:
        try:
            present = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}
        except ValueError as error:
            raise UserError(f"{self.path} is damaged: {error}; move it away, and the sweep writes a new one") from None
        if not isinstance(present, dict):
            raise UserError(f"{self.path} is no record of a sweep; move it away, and the sweep writes a new one")
        return present

    def change(self, add: dict[str, Any], remove: list[str] | None = None) -> None:
        """Add and remove entries. The file is replaced whole, and is not there while it has no entry.

        Raises:
            UserError: the file is damaged.
        """
        with self.locks.table():
            present = self._present()
            wanted = {key: value for key, value in present.items() if key not in (remove or [])} | add
            if not wanted:
                self.path.unlink(missing_ok=True)
            elif wanted != present:
                unfinished = self.path.with_suffix(".unfinished")
                unfinished.write_text(json.dumps(wanted, indent=1) + "\n")
                unfinished.replace(self.path)


def save_configurations(folder: Path, locks: Locks, cells: list[Cell]) -> None:
    """Write FOLDER/configurations.json: hash -> the whole configuration, as `Config.from_plain` takes it."""
    Record(folder, "configurations.json", locks).change({cell.hash: plain(asdict(cell.config)) for cell in cells})


class Failures(Record):
    """FOLDER/failures.json: hash -> {"configuration", "reason"} of runs without a result. A retry forgets its entry."""

    def __init__(self, folder: Path, locks: Locks) -> None:
        super().__init__(folder, "failures.json", locks)

    def forget(self, cells: list[Cell]) -> None:
        """These are tried again."""
        self.change({}, [cell.hash for cell in cells])

    def add(self, cell: Cell, reason: str) -> None:
        """This one has failed."""
        self.change({cell.hash: {"configuration": cell.label, "reason": reason}})
