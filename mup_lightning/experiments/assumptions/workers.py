"""Networks one after another in worker processes, whose start-up is paid once. Imports no torch in the parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, parent_process
from typing import Any, NamedTuple

from mup_lightning.errors import UserError
from mup_lightning.experiments.assumptions.settings import AssumptionSettings


class Task(NamedTuple):
    """One network to train and measure."""

    network: str
    optimizer: str
    depth: int
    seed: int


def each(tasks: list[Task], settings: AssumptionSettings, workers: int) -> Iterator[tuple[Task, dict[str, Any]]]:
    """Do all tasks and yield each with its measurements as soon as it is done.

    Args:
        tasks: in the order in which they are begun.
        settings: see there.
        workers: processes, each with one thread; 0: in this process.

    Raises:
        UserError: a task's own, or a worker was killed.
    """
    if workers == 0:
        for task in tasks:
            yield task, _do(task, settings)
        return
    before = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")  # a forked torch cannot use its threads
    pool = ProcessPoolExecutor(min(workers, len(tasks)), context, initializer=_begin)
    try:
        running = {pool.submit(_do, task, settings): task for task in tasks}
        for future in as_completed(running):
            yield running[future], future.result()
    except BrokenProcessPool:
        raise UserError(
            "a worker process was killed from outside, perhaps for want of memory; try fewer --workers"
        ) from None
    finally:
        # Left early (Ctrl-C, an error), the pool would first finish what its workers are at.
        pool.shutdown(wait=False, cancel_futures=True)
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()


def _begin() -> None:
    """Start up a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends its workers
    threading.Thread(target=_die_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(1)


def _do(task: Task, settings: AssumptionSettings) -> dict[str, Any]:
    from mup_lightning.experiments.assumptions.measure import measure

    return measure(*task, settings)


def _die_with_parent() -> None:
    """A check that was killed leaves no worker behind, which would otherwise compute for nobody."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
