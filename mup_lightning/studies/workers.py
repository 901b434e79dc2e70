"""Work done side by side, in processes that start up once and end with their parent."""

from __future__ import annotations

import gc
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import connection, parent_process
from typing import TypeVar

from mup_lightning.errors import UserError

T = TypeVar("T")
R = TypeVar("R")


def each(do: Callable[[T], R], items: Sequence[T], workers: int, threads: int = 1) -> Iterator[tuple[T, R]]:
    """Do all items, and yield each with its result as soon as it is done.

    Args:
        do: of a module's top level, or a `partial` of such a function: processes import it.
        items: in the order in which they are begun.
        workers: processes; 0: this one.
        threads: of torch, in each process.

    Raises:
        UserError: an item's own, or a worker was killed.
    """
    if workers == 0:
        for item in items:
            yield item, do(item)
        return
    context = multiprocessing.get_context("spawn")  # a forked torch cannot use its threads or a GPU
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(min(workers, len(items)), context, start_up, (threads,))
    try:
        running = {pool.submit(partial(_do, do), item): item for item in items}
        for future in as_completed(running):
            yield running[future], future.result()
    except BaseException as error:
        # Ctrl-C, or an error: nobody waits for what is still running. A training would take a gentler signal for the
        # wish to end, and the worker would begin its next one.
        for process in set(multiprocessing.active_children()) - before:
            process.kill()
        if isinstance(error, BrokenProcessPool):
            fewer = f"--workers {workers - 1}, or " if workers > 1 else ""
            raise UserError(
                f"a worker process died, perhaps for want of memory (or because somebody ended it); try {fewer}smaller "
                f"sizes, or a smaller data.micro_batch"
            ) from None
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _do(do: Callable[[T], R], item: T) -> R:
    result = do(item)
    gc.collect()  # a Trainer and its module refer to each other, and hold the run's memory
    return result


def start_up(threads: int, environment: Mapping[str, str] | None = None) -> None:
    """Before a worker's first work: threads and environment, set before torch is imported."""
    os.setsid()  # Ctrl-C is for the parent, which ends its workers
    os.environ |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), **(environment or {})}
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        del os.environ[name]  # Lightning would take the job's task for one process of many
    threading.Thread(target=die_with_parent, daemon=True).start()
    from mup_lightning.training.hardware import tune_allocator

    tune_allocator()
    import torch
    from tqdm import tqdm

    torch.set_num_threads(threads)
    # Its own lock is a semaphore of the system too, which a killed worker would leave behind.
    tqdm.set_lock(threading.RLock())


def die_with_parent() -> None:
    """A parent that was killed leaves no worker behind, which would otherwise compute for nobody."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
