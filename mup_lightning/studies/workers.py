"""Worker processes, which start up once and end with their parent, and how many of them a machine can carry."""

import gc
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, parent_process
from pathlib import Path
from typing import TypeVar

import psutil
from tqdm import tqdm

from mup_lightning.errors import UserError
from mup_lightning.terminal import spell_signs

T = TypeVar("T")
R = TypeVar("R")

DIED = "a worker process died: out of memory, or killed"
_OF_A_WORKER = 700 << 20  # bytes that Python, torch and Lightning take in each process
_CGROUP = Path("/sys/fs/cgroup")  # a container's own limits (cgroup version 2)


def each(
    do: Callable[[T], R],
    items: Iterable[T],
    workers: int,
    threads: int = 1,
    *,
    gpus: Sequence[str] = (),
    log: Path | None = None,
    died: Callable[[T], R] | None = None,
) -> Iterator[tuple[int, R]]:
    """Do all items in their order, and yield the number of each, from 0, with its result as soon as it is done.

    Each worker is an executor of its own: its death costs one item, and no other worker. An item's own error is raised
    here.

    Args:
        do: a function at a module's top level, or a `partial` of one: processes import it.
        items: each is taken when a worker is free for it.
        workers: processes, of so many torch `threads`; 0: do everything in this one.
        gpus: what the workers find in CUDA_VISIBLE_DEVICES, in turn; empty: what this process has.
        log: the file that workers append their output to; None: they print as this process does.
        died: gives the result of an item whose worker was killed; None: that is a UserError.
    """
    if workers == 0:
        yield from enumerate(map(do, items))
        return
    context = multiprocessing.get_context("spawn")  # a forked torch can use neither its threads nor a GPU
    before = set(multiprocessing.active_children())
    waiting = enumerate(items)
    pool: dict[int, ProcessPoolExecutor] = {}
    running: dict[Future[R], tuple[int, int, T]] = {}

    def start(number: int) -> None:
        """Give a worker its next item, if there is one."""
        for place, item in waiting:
            if number not in pool:
                gpu = gpus[number % len(gpus)] if gpus else None
                pool[number] = ProcessPoolExecutor(1, context, start_up, (threads, gpu, log))
            # The new process inherits the mask. SLURM signals all processes of a task, in any order: only the parent
            # acts on signals, and kills its workers.
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
            try:
                running[pool[number].submit(_do, do, item)] = (number, place, item)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            return

    try:
        for number in range(workers):
            start(number)
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                number, place, item = running.pop(future)
                try:
                    result = future.result()
                except BrokenProcessPool:
                    if died is None:
                        advice = "try fewer workers (--workers), smaller sizes, or a smaller data.micro_batch"
                        raise UserError(f"{DIED}; {advice}") from None
                    pool.pop(number).shutdown()
                    result = died(item)
                start(number)
                yield place, result
    except BaseException:
        # An error, or Ctrl-C: nobody waits for what is still running.
        for process in set(multiprocessing.active_children()) - before:
            process.kill()
        raise
    finally:
        for executor in pool.values():
            executor.shutdown()


def _do(do: Callable[[T], R], item: T) -> R:
    result = do(item)
    gc.collect()  # a Trainer and its module refer to each other, and hold the run's memory
    return result


def run_all(
    name: str, measure: Callable[[T], R], items: Sequence[T], workers: int, work: Sequence[float] | None = None
) -> list[R]:
    """Measure all items, those with most `work` first, under one progress bar: the results, in the items' order."""
    work = work or [1.0] * len(items)
    order = sorted(range(len(items)), key=lambda place: -work[place])
    where = f"on {workers} worker processes" if workers else "in this process"
    print(f"{name}: {len(items)} trainings {where}", file=sys.stderr, flush=True)
    results: dict[int, R] = {}
    bar_format = "{desc} {percentage:3.0f}% |{bar}| [{elapsed}<{remaining}{postfix}]"
    with tqdm(total=sum(work), desc=name, bar_format=bar_format, leave=False, disable=None) as bar:
        for number, result in each(measure, [items[place] for place in order], workers, threads(workers)):
            results[order[number]] = result
            bar.set_postfix_str(f", {len(results)}/{len(items)} trainings")
            bar.update(work[order[number]])
    return [results[place] for place in range(len(items))]


def start_up(threads: int, gpu: str | None = None, log: Path | None = None) -> None:
    """Prepare a worker before its first item, and before torch is imported; see `each`."""
    if log is not None:
        with log.open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
    spell_signs()

    def die_with_parent() -> None:
        """A killed parent leaves no worker computing for nobody."""
        if parent := parent_process():
            connection.wait([parent.sentinel])
            os._exit(1)

    os.environ |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    threading.Thread(target=die_with_parent, daemon=True).start()
    from mup_lightning.training import tune_allocator

    tune_allocator()
    import torch

    torch.set_num_threads(threads)
    tqdm.set_lock(threading.RLock())  # its own is a semaphore of the system, which a killed worker would leave behind


def fitting(memory: int, items: int) -> int:
    """Workers for a CPU, at least one: one a core, as the memory of an item (bytes) allows, no more than items."""
    return max(1, min(cores(), int(0.9 * free_memory()) // (memory + _OF_A_WORKER), items))


def threads(workers: int) -> int:
    """Threads of each worker: OMP_NUM_THREADS if that is a number, else its share of the cores."""
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return max(1, int(given) if given.isdecimal() else cores() // max(1, workers))


def cores() -> int:
    """Cores that this process may use, by its affinity (which SLURM sets) and its container's limit; at least 1."""
    present = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _limit("cpu.max").partition(" ")
    return max(1, min(present, int(quota) // int(period)) if quota.isdecimal() else present)


def free_memory() -> int:
    """Bytes available on this machine, at most what the container's limit or SLURM's job grants."""
    node, core = (int(os.environ.get(f"SLURM_MEM_PER_{of}") or 0) << 20 for of in ("NODE", "CPU"))  # 0: all of it
    limit = _limit("memory.max")
    granted = [node, core * cores(), int(limit) if limit.isdecimal() else 0]
    return min([psutil.virtual_memory().available, *filter(None, granted)])


def _limit(name: str) -> str:
    try:
        return (_CGROUP / name).read_text().strip()
    except OSError:
        return ""


def gpus() -> list[str]:
    """Names of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES takes them."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]
