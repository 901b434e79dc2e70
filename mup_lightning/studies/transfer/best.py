"""From a sweep's table of results to the best value in each group: which, how good, and how sure."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from mup_lightning.errors import UserError
from mup_lightning.studies.transfer.estimate import level
from mup_lightning.studies.transfer.losses import SAID_ELSEWHERE
from mup_lightning.studies.transfer.results_csv import finite, log2_value_of, loss_of, read_rows, read_text
from mup_lightning.studies.transfer.transfer_curves import Curve

GROUP = ("optimizer", "parametrization", "branch_depth", "width", "depth", "value")
"""Rows that agree in these, and in all further options that the table has, are one group: what is left to differ is the
swept value and the seed."""

NEEDED = (*GROUP, "log2_value", "seed", "loss", "unigram_loss", "steps")


@dataclass(frozen=True)
class Best:
    """One group of a table.

    Attributes:
        group: the values of `GROUP`, and of further options, such as model.layer_norm.
        losses: log2 of the value -> mean loss over the seeds, on one level where they differ between values; None where
            one diverged or was stopped as hopeless.
        leveled: a value was run with other seeds than another, so that losses are not the plain means.
        lost: log2 of these values -> which of the two.
        best: log2 of the value with the lowest loss; None where all diverged.
        edge: the best value is the smallest or the largest that was tried: a better one may lie beyond.
        unigram_loss: of the corpus.
        steps: of every run that went to its end; where none did, the most that one made.
    """

    group: dict[str, str]
    losses: dict[float, float | None]
    leveled: bool
    lost: dict[float, str]
    best: float | None
    edge: bool
    unigram_loss: float
    steps: int


def best_values(path: Path) -> list[Best]:
    """Read a table and find the best value of every group, groups in order of their best losses.

    Args:
        path: results.csv of `mup-lightning sweep`, or its folder.

    Raises:
        UserError: there is no such file, it lacks columns, has no rows or a cell that is no number, holds two runs of
            one value and seed, or a group mixes texts or numbers of steps.
    """
    path = path / "results.csv" if path.is_dir() else path
    rows = read_rows(read_text(path), path, NEEDED, "the results.csv of a sweep")
    columns = [*GROUP, *(column for column in rows[0][1] if "." in column and column not in SAID_ELSEWHERE)]
    groups: dict[tuple[str, ...], list[tuple[str, dict[str, str]]]] = defaultdict(list)
    for where, row in rows:
        groups[tuple("" if column == row["value"] else row[column] for column in columns)].append((where, row))
    found = [_best(members, [c for c in columns if c != members[0][1]["value"]]) for members in groups.values()]
    return sorted(found, key=lambda b: float("inf") if b.best is None else b.losses[b.best] or 0.0)


def _best(rows: list[tuple[str, dict[str, str]]], columns: list[str]) -> Best:
    by_value: dict[float, dict[str, float | None]] = defaultdict(dict)
    places: dict[tuple[float, str], tuple[str, dict[str, str]]] = {}
    lost: dict[float, str] = {}
    for where, row in rows:
        value, seed = log2_value_of(row, where), row["seed"]
        before, other = places.setdefault((value, seed), (where, row))
        if row is not other:
            _refuse_twice(f"{where} is 2^{value:g}, seed {seed} of {row['optimizer']} once more", row, other, before)
        by_value[value][seed] = loss = loss_of(row["loss"], f"{where}: loss")
        if loss is None and lost.get(value) != "diverged":
            lost[value] = "stopped" if row.get("stopped") else "diverged"
    first = rows[0][1]
    known = {
        value: {} if None in found.values() else {seed: loss for seed, loss in found.items() if loss is not None}
        for value, found in sorted(by_value.items())
    }
    (curve,), _ = level([Curve(first["width"], 0.0, known, frozenset())])
    losses = {value: curve.means.get(value) for value in known}
    left = {value: loss for value, loss in losses.items() if loss is not None}
    best = min(left, key=lambda value: left[value]) if left else None
    return Best(
        group={column: first[column] for column in columns},
        losses=losses,
        leveled=len({frozenset(found) for found in known.values() if found}) > 1,
        lost=lost,
        best=best,
        edge=best in (min(losses), max(losses)),
        unigram_loss=_shared(rows, "unigram_loss", "texts (unigram losses"),
        steps=int(_shared(rows, "steps", "runs of different length (steps")),
    )


def _refuse_twice(what: str, row: dict[str, str], other: dict[str, str], before: str) -> None:
    """Unless it is one run, which stands in the table on two axes."""
    if row.get("config_hash") != other.get("config_hash"):
        raise UserError(
            f"{what}, of another configuration than {before}: no column tells what differs; make a table of each"
        )
    if row.get("axis") == other.get("axis"):
        raise UserError(f"{what} (before: {before}); keep one of the two rows")


def _shared(rows: list[tuple[str, dict[str, str]]], column: str, complaint: str) -> float:
    """The number that all runs of a group have in a column, or, where none went to its end, the largest."""
    every = {finite(row[column], f"{where}: {column}"): where for where, row in rows}
    # A run that diverged or was stopped made fewer steps.
    ended = {finite(row[column], where): where for where, row in rows if loss_of(row["loss"], where) is not None}
    if len(ended) > 1:
        told = ", ".join(f"{number:g} in {where}" for number, where in sorted(ended.items()))
        raise UserError(f"one group mixes {complaint}: {told}): their losses cannot be compared; make a table of each")
    return next(iter(ended), max(every))


def as_lines(found: list[Best]) -> list[list[str]]:
    """A table for people: a line per group under a heading; what all groups share is left out."""
    columns = dict.fromkeys(column for best in found for column in best.group)
    shown = [c for c in columns if len({best.group.get(c, "") for best in found}) > 1] or ["optimizer"]
    value = "value" if "value" in shown else found[0].group["value"]
    lines = [[*shown, f"best {value}", "loss", "others tried"]]
    for best in found:
        name = "-" if best.best is None else f"2^{best.best:g}" + (" (edge)" if best.edge else "")
        loss = best.losses[best.best] if best.best is not None else None
        others = [f"2^{value:g} {_loss(other, best.lost.get(value))}" for value, other in best.losses.items()
                  if value != best.best]  # fmt: skip
        lines.append([*(best.group.get(column, "") for column in shown), name, _loss(loss), ", ".join(others)])
    return lines


def _loss(loss: float | None, lost: str | None = None) -> str:
    return lost or "diverged" if loss is None else f"{loss:.3f}"
