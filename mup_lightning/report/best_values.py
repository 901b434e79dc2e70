"""From a sweep's table of results to the best value in each group: which, how good, and how sure."""

from __future__ import annotations

import csv
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from mup_lightning.errors import UserError
from mup_lightning.report.transfer_curves import Curve
from mup_lightning.report.transfer_noise import level

GROUP = ("optimizer", "parametrization", "branch_depth", "width", "depth")
"""Rows that agree in these are one group: only the swept value and the seed differ in it."""

NEEDED = (*GROUP, "value", "log2_value", "seed", "loss", "unigram_loss", "steps")


@dataclass(frozen=True)
class Best:
    """One group of a table.

    Attributes:
        group: the values of `GROUP`.
        value: name of the swept value.
        losses: log2 of the value -> mean loss over the seeds, on one level where they differ between values; None where
            one diverged.
        best: log2 of the value with the lowest loss; None where all diverged.
        edge: the best value is the smallest or the largest that was tried: a better one may lie beyond.
        unigram_loss: of the corpus.
        steps: of every run.
    """

    group: dict[str, str]
    value: str
    losses: dict[float, float | None]
    best: float | None
    edge: bool
    unigram_loss: float
    steps: int


def best_values(path: Path) -> list[Best]:
    """Read a table and find the best value of every group, groups in order of their best losses.

    Args:
        path: results.csv of `mup-lightning sweep`.

    Raises:
        UserError: there is no such file, it lacks columns, or it has no rows.
    """
    if not path.is_file():
        raise UserError(f"there is no {path}; expected the results.csv of a sweep")
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        missing = [column for column in NEEDED if column not in (reader.fieldnames or ())]
        if missing:
            raise UserError(f"{path} lacks the columns {', '.join(missing)}; expected the results.csv of a sweep")
        rows = [row for row in reader if not row.get("stopped")]
    if not rows:
        raise UserError(f"{path} has no finished runs yet")
    groups: dict[tuple[str, ...], list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        groups[tuple(row[column] for column in GROUP)].append(row)
    found = [_best(members) for members in groups.values()]
    return sorted(found, key=lambda b: float("inf") if b.best is None else b.losses[b.best] or 0.0)


def _best(rows: list[dict[str, str]]) -> Best:
    by_value: dict[float, dict[str, float | None]] = defaultdict(dict)
    for row in rows:
        by_value[float(row["log2_value"])][row["seed"]] = float(row["loss"]) if row["loss"] else None
    known = {
        value: {} if None in found.values() else {seed: loss for seed, loss in found.items() if loss is not None}
        for value, found in sorted(by_value.items())
    }
    (curve,), _ = level([Curve(rows[0]["width"], 0.0, known, frozenset())])
    losses = {value: curve.means.get(value) for value in known}
    finite = {value: loss for value, loss in losses.items() if loss is not None}
    best = min(finite, key=lambda value: finite[value]) if finite else None
    return Best(
        group={column: rows[0][column] for column in GROUP},
        value=rows[0]["value"],
        losses=losses,
        best=best,
        edge=best in (min(losses), max(losses)),
        unigram_loss=float(rows[0]["unigram_loss"]),
        steps=int(rows[0]["steps"]),
    )


def as_lines(found: list[Best]) -> list[list[str]]:
    """A table for people: a line per group under a heading; what all groups share is left out."""
    shown = [column for column in GROUP if len({best.group[column] for best in found}) > 1] or ["optimizer"]
    lines = [[*shown, f"best {found[0].value}", "loss", "others tried"]]
    for best in found:
        name = "-" if best.best is None else f"2^{best.best:g}" + (" (edge)" if best.edge else "")
        loss = best.losses[best.best] if best.best is not None else None
        others = [f"2^{value:g} {_loss(other)}" for value, other in best.losses.items() if value != best.best]
        lines.append([*(best.group[column] for column in shown), name, _loss(loss), ", ".join(others)])
    return lines


def _loss(loss: float | None) -> str:
    return "diverged" if loss is None else f"{loss:.3f}"
