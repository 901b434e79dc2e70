"""Runs the trainings of a check side by side, in processes that start up once."""

from __future__ import annotations

import gc
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, parent_process
from typing import Any

from mup_lightning.errors import UserError
from mup_lightning.experiments.coordinates.cells import Cell
from mup_lightning.experiments.coordinates.measure import measure
from mup_lightning.experiments.sweep.pool import cores, free_memory

_OF_A_WORKER = 700 << 20
"""Bytes that a worker takes for Python, torch and Lightning alone."""


def how_many(cells: list[Cell], asked: int | None) -> int:
    """Worker processes: as asked, or one a core, as far as memory allows; a GPU is not shared unless asked for."""
    if asked is not None:
        return min(asked, len(cells))
    if cells[0].config.trainer.accelerator == "gpu":
        return 1
    fit = int(0.9 * free_memory() // (max(cell.memory for cell in cells) + _OF_A_WORKER))
    return max(1, min(cores(), fit, len(cells)))


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
    for cell, run in _in_this_process(cells) if workers == 0 else _in_workers(cells, workers):
        runs.append(run)
        on_done(cell, run)
    return runs


def _in_this_process(cells: list[Cell]) -> Iterator[tuple[Cell, dict[str, Any]]]:
    for cell in cells:
        yield cell, measure(cell)


def _in_workers(cells: list[Cell], workers: int) -> Iterator[tuple[Cell, dict[str, Any]]]:
    threads = int(os.environ.get("OMP_NUM_THREADS", max(1, cores() // workers)))
    context = multiprocessing.get_context("spawn")  # a forked torch cannot use its threads or a GPU
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, context, _start, (threads,))
    try:
        futures = {pool.submit(_train, cell): cell for cell in cells}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BaseException as error:
        # Ctrl-C, or an error: nobody waits for what is still running. A training would take a gentler signal for the
        # wish to end, and the worker would begin its next one.
        for process in set(multiprocessing.active_children()) - before:
            process.kill()
        if isinstance(error, BrokenProcessPool):
            raise UserError(
                f"a worker process died, perhaps for want of memory; try --workers {max(1, workers - 1)}, or smaller "
                f"sizes"
            ) from None
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _start(threads: int) -> None:
    """Before a worker's first run."""
    os.setsid()  # Ctrl-C is for the check, which ends its workers
    os.environ |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        del os.environ[name]  # Lightning would take the job for one of many processes of a training
    threading.Thread(target=_die_with_parent, daemon=True).start()
    from mup_lightning.training.hardware import tune_allocator

    tune_allocator()
    import torch

    torch.set_num_threads(threads)


def _train(cell: Cell) -> dict[str, Any]:
    result = measure(cell)
    gc.collect()  # a Trainer and its module refer to each other, and hold the run's memory
    return result


def _die_with_parent() -> None:
    """A check that was killed leaves no worker behind."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
