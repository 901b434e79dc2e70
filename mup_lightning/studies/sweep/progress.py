"""How far a sweep is and how long it will take: one bar in a terminal, one line a run elsewhere."""

from __future__ import annotations

import heapq
import os
import sys
import time
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from mup_lightning.studies.sweep.grid import Cell
from mup_lightning.studies.sweep.pool import Worker
from mup_lightning.studies.sweep.table import Outcome

ASSUMED_SPEED = 4.0e10
"""Operations per second of one worker, until a run has been measured."""


class Estimate:
    """Seconds that runs take: as measured for runs of the same cost, else in proportion to their work.

    Args:
        cells: of the sweep.
        rows: of its table, which it learns from.

    Attributes:
        measured: runs that it rests on.
    """

    def __init__(self, cells: Iterable[Cell], rows: list[dict[str, str]]) -> None:
        self.measured = 0
        self._seconds, self._work = 0.0, 0.0
        self._kinds: dict[tuple[str, float], list[float]] = {}
        seconds = {row["config_hash"]: float(row["seconds"]) for row in rows if row["loss"]}
        for cell in cells:
            if cell.hash in seconds:
                self.observe(cell, seconds[cell.hash])

    def observe(self, cell: Cell, seconds: float) -> None:
        """Learn from a run that went to its end."""
        self.measured += 1
        self._seconds += seconds
        self._work += cell.work
        self._kinds.setdefault(cell.kind, []).append(seconds)

    def seconds(self, cell: Cell) -> float:
        """Of one run on one worker."""
        known = self._kinds.get(cell.kind)
        if known:
            return sum(known) / len(known)
        speed = self._work / self._seconds if self._seconds else ASSUMED_SPEED
        return cell.work / speed

    def left(self, worker: Worker) -> float:
        """Of the run that a worker has: by its own pace once that can be seen."""
        if worker.cell is None:
            return 0.0
        elapsed = time.monotonic() - worker.began
        part = worker.step / worker.cell.config.trainer.max_steps
        if part > 0.05:
            return elapsed * (1 - part) / part
        return max(0.0, self.seconds(worker.cell) - elapsed)

    def remaining(self, pending: Iterable[Cell], workers: list[Worker], count: int) -> float:
        """Wall seconds until all is done: the longest run first, each to the worker that is free first."""
        ends = [self.left(worker) for worker in workers] or [0.0] * max(1, count)
        heapq.heapify(ends)
        for seconds in sorted(map(self.seconds, pending), reverse=True):
            heapq.heapreplace(ends, ends[0] + seconds)
        return max(ends)


class Progress:
    """A bar over the work of the whole sweep, what was done before included.

    Args:
        cells: of the sweep, or of this shard of it.
        done: of these, in the table already.
    """

    def __init__(self, cells: list[Cell], done: list[Cell]) -> None:
        self.total, self.done = len(cells), len(done)
        self._work = sum(cell.work for cell in done)
        self._all_work = sum(cell.work for cell in cells) or 1.0
        self._terminal = sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).columns > 0
        self._bar: tqdm[Any] | None = None
        self._last = ""

    def open(self) -> None:
        """Show the bar, where there is a terminal."""
        if self._terminal:
            form = "{desc} {percentage:3.0f}% |{bar}| [{elapsed}{postfix}]"
            self._bar = tqdm(total=100.0, desc="sweep", dynamic_ncols=True, bar_format=form)

    def finished(self, cell: Cell, text: str, seconds_left: float) -> None:
        """A run has come to its end."""
        self.done += 1
        self._work += cell.work
        self._last = f"{cell.label}: {text}"
        if self._bar is None:
            self.say(f"[{self.done}/{self.total}] {self._last}; {tqdm.format_interval(seconds_left)} left")

    def show(self, workers: list[Worker], seconds_left: float) -> None:
        """Bring the bar up to date."""
        if self._bar is None:
            return
        running = sum(w.cell.work * w.step / w.cell.config.trainer.max_steps for w in workers if w.cell)
        self._bar.n = 100 * min(1.0, (self._work + running) / self._all_work)
        left = tqdm.format_interval(seconds_left)
        self._bar.set_postfix_str(f"{left} left, {self.done}/{self.total} runs; {self._last}", refresh=True)

    def say(self, text: str) -> None:
        """A line of its own."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()


def in_words(outcome: Outcome) -> str:
    """A run's outcome for one line."""
    if outcome.diverged:
        return f"diverged, {outcome.diverged}"
    if outcome.stopped:
        return f"stopped early, {outcome.stopped}"
    return f"loss {outcome.loss:.4f} in {outcome.seconds:.0f} s"
