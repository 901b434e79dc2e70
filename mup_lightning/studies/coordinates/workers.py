"""Runs the trainings of a check side by side, in processes that start up once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mup_lightning.studies.coordinates.cells import Cell
from mup_lightning.studies.coordinates.check import measure
from mup_lightning.studies.sweep.pool import fitting, threads
from mup_lightning.studies.workers import each


def how_many(cells: list[Cell], asked: int | None) -> int:
    """Worker processes: as asked, or one a core, as far as memory allows; a GPU is not shared unless asked for."""
    if asked is not None:
        return min(asked, len(cells))
    if cells[0].config.trainer.accelerator == "gpu":
        return 1
    return fitting(max(cell.memory for cell in cells), len(cells))


def run_all(
    cells: list[Cell], workers: int, on_done: Callable[[Cell, dict[str, Any]], object] = lambda cell, run: None
) -> list[dict[str, Any]]:
    """Train and measure all cells.

    Args:
        cells: in the order in which they shall start.
        workers: processes; 0: this one.
        on_done: called after each, in the order in which they end.

    Returns:
        What `measure` says of each, in the order in which they ended.

    Raises:
        UserError: a cell cannot be trained, or a worker died.
    """
    runs = []
    for cell, run in each(measure, cells, workers, threads(workers)):
        runs.append(run)
        on_done(cell, run)
    return runs
