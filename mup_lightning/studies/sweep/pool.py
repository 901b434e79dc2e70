"""The sweep's side of its workers: starting, giving them runs, hearing from them, noticing their death."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from contextlib import suppress
from multiprocessing import connection
from pathlib import Path

from mup_lightning.errors import UserError
from mup_lightning.studies.allowance import cores as cores
from mup_lightning.studies.allowance import free_memory as free_memory
from mup_lightning.studies.sweep.grid import Cell
from mup_lightning.studies.sweep.worker import Message, Task, work

_OF_A_WORKER = 700 << 20
"""Bytes that a worker takes for Python, torch and Lightning alone."""


class Worker:
    """A worker process.

    Attributes:
        cell: what it runs; None: nothing.
        ready: whether it has started up.
        began: when it took up the cell, `time.monotonic`.
        step: that it was last heard at.
        busy: seconds spent on runs so far.
        starting: seconds from its birth until it was ready.
    """

    def __init__(self, number: int, threads: int, environment: dict[str, str], log: Path) -> None:
        context = multiprocessing.get_context("spawn")  # a forked torch cannot use its threads or a GPU
        self.number = number
        self.connection, theirs = context.Pipe()
        arguments = (theirs, environment, threads, log)
        self._process = context.Process(target=work, args=arguments, name=f"sweep-worker-{number}")
        self._process.start()
        theirs.close()  # so that its death closes the connection
        self.cell: Cell | None = None
        self.ready = False
        self.began, self.step, self.busy = 0.0, 0, 0.0
        self.starting, self._born = 0.0, time.monotonic()

    def give(self, cell: Cell, task: Task) -> None:
        """Give it a run; only when it has none. That it is dead will be heard as of any other worker."""
        self.cell, self.began, self.step = cell, time.monotonic(), 0
        with suppress(OSError):
            self.connection.send(task)

    def is_ready(self) -> None:
        """It has said that it is ready: only now it takes up the run that it was given."""
        self.ready, self.began = True, time.monotonic()
        self.starting = self.began - self._born

    def take(self) -> Cell:
        """The cell that it has just ended, one way or another."""
        cell, self.cell = self.cell, None
        assert cell is not None
        self.busy += time.monotonic() - self.began
        return cell

    def hear(self) -> Message | None:
        """Its next message; None: it is dead."""
        try:
            message: Message = self.connection.recv()
        except (EOFError, OSError):
            return None
        return message

    def death(self) -> str:
        """How a dead worker died."""
        self._process.join(10)
        code = self._process.exitcode
        how = f"signal {-code}" if code is not None and code < 0 else f"exit status {code}"
        return f"the worker died ({how}{'; out of memory?' if code == -9 else ''})"

    @property
    def told_to_stop(self) -> bool:
        """Whether it died of a signal to stop: SLURM sends it to all of a task's processes, in any order."""
        return self._process.exitcode in (-signal.SIGTERM, -signal.SIGINT)

    def dismiss(self) -> None:
        """Let it end by itself, where it has nothing to do."""
        with suppress(OSError):
            self.connection.send(None)

    def end(self) -> None:
        """See it end: soon where it was dismissed, now where it has a run, which is lost."""
        if self.cell is None:
            self._process.join(5)
        self._process.kill()
        self._process.join()
        self.connection.close()


def heard(workers: list[Worker], timeout: float) -> list[Worker]:
    """Workers that have something to say, or have died; after so many seconds at most."""
    ready = connection.wait([worker.connection for worker in workers], timeout)
    return [worker for worker in workers if worker.connection in ready]


def how_many(cells: list[Cell], asked: int | None) -> int:
    """Workers that fit: one a core (or GPU), as many as there is memory for, no more than runs.

    Raises:
        UserError: fewer than 1 are asked for.
    """
    if asked is not None:
        if asked < 1:
            raise UserError(f"--workers is {asked}; expected a whole number of at least 1")
        return min(asked, len(cells))
    if any(cell.config.trainer.accelerator == "gpu" for cell in cells):
        return min(len(gpus()), len(cells))
    return fitting(max(cell.memory for cell in cells), len(cells))


def fitting(memory: int, runs: int) -> int:
    """Workers on CPU: one a core, as many as there is memory for, no more than runs; at least one.

    Args:
        memory: bytes that a run takes.
        runs: there are to do.
    """
    fit = int(0.9 * free_memory() // (memory + _OF_A_WORKER))
    return max(1, min(cores(), fit, runs))


def threads(workers: int) -> int:
    """Of each worker process: as OMP_NUM_THREADS says, whose first number counts, or its share of the cores.

    Raises:
        UserError: OMP_NUM_THREADS is no number.
    """
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if not given:
        return max(1, cores() // max(1, workers))
    if not given.isdecimal() or int(given) < 1:
        raise UserError(f"OMP_NUM_THREADS is {given!r}; expected a whole number of at least 1, or nothing")
    return int(given)


def environment(number: int, threads: int, on_gpu: bool) -> dict[str, str]:
    """What worker `number` finds in its environment: its threads, and its GPU in turn."""
    result = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    if on_gpu:
        names = gpus()
        result["CUDA_VISIBLE_DEVICES"] = names[number % len(names)]
    return result


def gpus() -> list[str]:
    """Names of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES takes them."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(n) for n in range(torch.cuda.device_count())]
