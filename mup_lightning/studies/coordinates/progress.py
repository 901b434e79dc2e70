"""How far a check is and how long it will take: a bar in a terminal, a line a training elsewhere."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import Any

from tqdm import tqdm

from mup_lightning.studies.coordinates.cells import Cell


class Progress:
    """To be used in a `with`.

    Args:
        cells: what will be trained; how long each takes is told by its work.
    """

    def __init__(self, cells: list[Cell]) -> None:
        self._all_work, self._count = sum(cell.work for cell in cells), len(cells)
        self._work, self._done, self._begin = 0.0, 0, time.monotonic()
        terminal = sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).columns > 0
        form = "{desc} {percentage:3.0f}% |{bar}| [{elapsed}{postfix}]"
        self._bar = tqdm(total=100.0, desc="training", dynamic_ncols=True, bar_format=form, disable=not terminal)

    def __enter__(self) -> Progress:
        self._bar.set_postfix_str("the largest models come first")
        return self

    def finished(self, cell: Cell, run: dict[str, Any]) -> None:
        """A training has ended."""
        self._work += cell.work
        self._done += 1
        part = self._work / self._all_work
        left = tqdm.format_interval((time.monotonic() - self._begin) * (1 - part) / part)
        how = f"diverged, {run['diverged']}" if run["diverged"] else f"{run['seconds']:.1f} s"
        if self._bar.disable:
            print(f"[{self._done}/{self._count}] {cell.label}: {how}; {left} left", file=sys.stderr, flush=True)
        else:
            self._bar.n = 100 * part
            self._bar.set_postfix_str(f"{left} left, {self._done}/{self._count} trainings; {cell.label}: {how}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
