"""Run the configurations of a sweep that its table lacks, each once, on worker processes."""

from __future__ import annotations

import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from mup_lightning.errors import UserError
from mup_lightning.studies.sweep import pool
from mup_lightning.studies.sweep.early import Judge
from mup_lightning.studies.sweep.grid import Cell, placed
from mup_lightning.studies.sweep.locks import Locks
from mup_lightning.studies.sweep.progress import Estimate, Progress, in_words
from mup_lightning.studies.sweep.records import Failures, save_configurations
from mup_lightning.studies.sweep.spec import EarlyStop
from mup_lightning.studies.sweep.table import Outcome, Table
from mup_lightning.studies.sweep.worker import Task

LOG = "workers.log"
_ATTEMPTS = 2
"""How often a configuration is given to a worker that dies of it."""

_LOOK_EVERY = 0.5
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class Summary:
    """What a sweep came to.

    Attributes:
        ran: configurations run now.
        before: that were in the table at the start.
        elsewhere: that another sweep in the same folder was running.
        diverged: of those run now.
        stopped: early, of those run now.
        failed: hash -> why, of those that have no result.
        workers: processes at once.
        wall: seconds, the workers' start included.
        busy: share of the workers' time that went into runs.
        busy_started: the same, of their time since they had started up.
        interrupted: by Ctrl-C or SIGTERM.
    """

    workers: int
    ran: int = 0
    before: int = 0
    elsewhere: int = 0
    diverged: int = 0
    stopped: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    wall: float = 0.0
    busy: float = 0.0
    busy_started: float = 0.0
    interrupted: bool = False


class SweepRun:
    """One sweep at work in a folder.

    Args:
        cells: to run; of the whole sweep, or of a shard.
        sweep: cells of the whole sweep, by which runs are judged; None: `cells`.
        folder: of the sweep.
        workers: processes; None: as many as fit.
        early_stop: see `EarlyStop`.
        keep_runs: see `Sweep`.
    """

    def __init__(
        self,
        cells: list[Cell],
        folder: Path,
        *,
        workers: int | None = None,
        early_stop: EarlyStop | None = None,
        keep_runs: bool = False,
        sweep: list[Cell] | None = None,
    ) -> None:
        everyone = sweep or cells
        self.folder, self.keep_runs = folder, keep_runs
        self.locks = Locks(folder)
        self.table = Table(folder, self.locks, list(cells[0].varied))
        self.failures = Failures(folder, self.locks)
        rows = self.table.rows()
        _refuse_other_corpus(everyone, rows, self.table.path)
        self.judge = Judge(early_stop, everyone, rows)
        self.estimate = Estimate(everyone, rows)
        present = {row["config_hash"] for row in rows}
        done = self._done = [cell for cell in cells if cell.hash in present]
        self.pending = [cell for cell in cells if cell.hash not in present]
        self.progress = Progress(cells, done)
        self.summary = Summary(pool.how_many(self.pending, workers) if self.pending else 0, before=len(done))
        self._on_gpu = any(cell.config.trainer.accelerator == "gpu" for cell in cells)
        self._threads = pool.threads(self.summary.workers)
        self._attempts: Counter[str] = Counter()
        self._workers: list[pool.Worker] = []
        self._buried, self._buried_starts = 0.0, 0.0  # seconds of workers that have died

    def run(self) -> Summary:
        """Run until nothing is left to do, or Ctrl-C.

        Raises:
            UserError: the workers cannot start, or the table cannot be written.
        """
        begin = time.monotonic()
        self.progress.open()
        self.table.complete(self._done)
        save_configurations(self.folder, self.locks, self.pending)
        self.failures.forget(self.pending)
        handlers = {number: signal.signal(number, self._interrupt) for number in _SIGNALS}
        try:
            for number in range(self.summary.workers):
                self._start_worker(number)
            while any(worker.cell for worker in self._workers) and not self.summary.interrupted:
                for worker in pool.heard(self._workers, _LOOK_EVERY):
                    self._listen(worker)
                self.progress.show(self._workers, self._left())
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            self._end_workers()
            self.progress.close()
            self._account(time.monotonic() - begin)
        return self.summary

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        """The first signal is read where no row is half counted; a second one acts at once."""
        self.summary.interrupted = True
        signal.signal(number, signal.SIG_DFL)

    def _start_worker(self, number: int) -> None:
        """Start a worker and give it its first run, or start none where nothing is left."""
        cell = self._next()
        if cell is None:
            return
        environment = pool.environment(number, self._threads, self._on_gpu)
        worker = pool.Worker(number, self._threads, environment, self.folder / LOG)
        self._workers.append(worker)
        self._give(worker, cell)

    def _next(self) -> Cell | None:
        """Claim the longest run that nobody has; None where there is none."""
        while self.pending:
            cell = max(self.pending, key=self.estimate.seconds)
            self.pending.remove(cell)
            if not self.locks.claim(cell.hash):
                self.summary.elsewhere += 1
                continue
            rows = self.table.rows()
            self.judge.read(rows)
            if not any(row["config_hash"] == cell.hash for row in rows):
                return cell
            self.locks.give_back(cell.hash)  # another sweep has just run it, perhaps on another axis
            self.table.complete([cell])
            self.summary.before += 1
        return None

    def _give(self, worker: pool.Worker, cell: Cell) -> None:
        config = placed(cell.config, str(self.folder / "runs"), cell.hash[:16])
        worker.give(cell, Task(config, self.keep_runs, *self.judge.limit(cell)))

    def _listen(self, worker: pool.Worker) -> None:
        message = worker.hear()
        if message is None:
            self._bury(worker)
            return
        what, content = message
        if what == "ready":
            worker.is_ready()
        elif what == "step":
            worker.step = content
        else:
            cell = worker.take()
            if what == "done":
                self._record(cell, content)
            else:
                self._fail(cell, content)
            self.locks.give_back(cell.hash)
            following = self._next()
            if following is not None:
                self._give(worker, following)

    def _record(self, cell: Cell, outcome: Outcome) -> None:
        self.table.append(cell, outcome)
        self.judge.learn(cell, outcome.early_loss)
        if outcome.loss is not None:
            self.estimate.observe(cell, outcome.seconds)
        self.summary.ran += 1
        self.summary.diverged += bool(outcome.diverged)
        self.summary.stopped += bool(outcome.stopped)
        self.progress.finished(cell, in_words(outcome), self._left())

    def _fail(self, cell: Cell, reason: str) -> None:
        self.summary.failed[cell.hash] = f"{cell.label}: {reason}"
        self.failures.add(cell, reason)
        self.progress.finished(cell, f"FAILED, {reason.splitlines()[0]}", self._left())

    def _bury(self, worker: pool.Worker) -> None:
        """A worker has died: its run is tried once more, and another worker takes its place."""
        self._workers.remove(worker)
        death = worker.death()
        if self.summary.interrupted:  # the signal has reached it too
            self._buried += worker.busy
            worker.end()
            return
        if not (worker.ready or worker.told_to_stop):
            raise UserError(f"{death} before its first run; its last words are in {self.folder / LOG}")
        if worker.cell is not None:
            cell = worker.take()
            self._attempts[cell.hash] += 1
            if self._attempts[cell.hash] < _ATTEMPTS:
                self.progress.say(f"{cell.label}: {death}; trying once more")
                self.pending.append(cell)
            else:
                self._fail(cell, f"{death}, {_ATTEMPTS} times")
            self.locks.give_back(cell.hash)
        self._buried += worker.busy
        self._buried_starts += worker.starting
        worker.end()
        self._start_worker(worker.number)

    def _account(self, wall: float) -> None:
        """Say how well the workers' time was used."""
        busy, starting = self._buried, self._buried_starts
        for worker in self._workers:
            busy, starting = busy + worker.busy, starting + worker.starting
        time_of_all = wall * self.summary.workers
        self.summary.wall = wall
        if time_of_all > starting:
            self.summary.busy, self.summary.busy_started = busy / time_of_all, busy / (time_of_all - starting)

    def _left(self) -> float:
        return self.estimate.remaining(self.pending, self._workers, self.summary.workers)

    def _end_workers(self) -> None:
        """Let idle workers end and kill busy ones: a run without its row leaves nothing behind."""
        for worker in self._workers:
            if worker.cell is None:
                worker.dismiss()
        for worker in self._workers:
            worker.end()


def _refuse_other_corpus(cells: list[Cell], rows: list[dict[str, str]], path: Path) -> None:
    """One table, one set of data: losses on different text cannot be compared."""
    ours = {cell.corpus for cell in cells}
    others = {row["corpus"] for row in rows} - ours
    if others:
        raise UserError(
            f"{path} has rows of another corpus (manifest {others.pop()[:12]}, this sweep reads "
            f"{', '.join(sorted(hash[:12] for hash in ours))}); choose another folder (--out)"
        )
