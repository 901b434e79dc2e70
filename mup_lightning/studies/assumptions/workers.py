"""The networks of the checks, one after another in worker processes. Imports no torch in the parent."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

from mup_lightning.studies import workers as pool
from mup_lightning.studies.assumptions.settings import AssumptionSettings


class Task(NamedTuple):
    """One network to train and measure."""

    network: str
    optimizer: str
    depth: int
    seed: int


def each(tasks: list[Task], settings: AssumptionSettings, workers: int) -> Iterator[tuple[Task, dict[str, Any]]]:
    """Do all tasks and yield each with its measurements as soon as it is done; see `workers.each`."""
    return pool.each(partial(_do, settings=settings), tasks, workers)


def _do(task: Task, settings: AssumptionSettings) -> dict[str, Any]:
    from mup_lightning.studies.assumptions.measure import measure

    return measure(*task, settings)
