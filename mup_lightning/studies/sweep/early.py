"""When a run is hopeless: judged against the best of its peers at the same step."""

from __future__ import annotations

from mup_lightning.studies.sweep.grid import Cell
from mup_lightning.studies.sweep.spec import EarlyStop


class Judge:
    """Knows the best early loss of each group of peers, over restarts too.

    Args:
        early_stop: the rule; None: no run is ever judged.
        cells: of the whole sweep, whoever runs them.
        rows: of the table.
    """

    def __init__(self, early_stop: EarlyStop | None, cells: list[Cell], rows: list[dict[str, str]]) -> None:
        self.early_stop = early_stop
        self._best: dict[str, float] = {}
        self._unheard = {cell.hash: cell for cell in cells}
        self.read(rows)

    def read(self, rows: list[dict[str, str]]) -> None:
        """Learn from rows, those of other shards among them, that were not read before."""
        for row in rows:
            cell = self._unheard.pop(row["config_hash"], None)
            if cell is not None and row["early_loss"]:
                self.learn(cell, float(row["early_loss"]))

    def learn(self, cell: Cell, early_loss: float | None) -> None:
        """A run has been judged, with this loss."""
        if early_loss is not None:
            self._best[cell.peers] = min(early_loss, self._best.get(cell.peers, early_loss))

    def limit(self, cell: Cell) -> tuple[int | None, float, str]:
        """The step to judge a run at (None: never), the loss that is too high, and why in words."""
        if self.early_stop is None:
            return None, 0.0, ""
        best = self._best.get(cell.peers)
        reference = min(cell.unigram_loss, best) if best is not None else cell.unigram_loss
        what = "the unigram loss" if reference == cell.unigram_loss else "the best of its size then"
        worse = self.early_stop.worse_than
        return self.early_stop.after, reference + worse, f"over {worse:g} nats worse than {what}, {reference:.4f}"
