"""From a sweep's table of results to the best value in each group: which, how good, and how sure."""

from __future__ import annotations

import csv
import io
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from mup_lightning.errors import UserError
from mup_lightning.report.transfer_curves import Curve
from mup_lightning.report.transfer_noise import level
from mup_lightning.report.transfer_runs import SAID_ELSEWHERE, finite, loss_of

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
        steps: of every run that went to its end.
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
        UserError: there is no such file, it lacks columns, has no rows, or holds two different runs of one value and
            seed.
    """
    path = path / "results.csv" if path.is_dir() else path
    rows = _rows(path)
    columns = [*GROUP, *(column for column in rows[0] if "." in column and column not in SAID_ELSEWHERE)]
    groups: dict[tuple[str, ...], list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        groups[tuple("" if column == row["value"] else row[column] for column in columns)].append(row)
    found = [_best(members, [c for c in columns if c != members[0]["value"]], path) for members in groups.values()]
    return sorted(found, key=lambda b: float("inf") if b.best is None else b.losses[b.best] or 0.0)


def _rows(path: Path) -> list[dict[str, str]]:
    """All but those at value 0."""
    if not path.is_file():
        raise UserError(
            f"there is no {path}; expected the results.csv of a sweep (make sweep EXPERIMENT=NAME runs one into "
            f"runs/sweeps/NAME)"
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1])))  # a sweep may be writing its last row
        head = next(csv.reader(io.StringIO(text)), [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read: {error}; expected the results.csv of a sweep") from None
    if missing := [column for column in NEEDED if column not in head]:
        raise UserError(f"{path} lacks the columns {', '.join(missing)}; expected the results.csv of a sweep")
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise UserError(f"{path}, row {number}: expected {len(head)} cells as in the heading")
    if not rows:
        raise UserError(f"{path} has no finished runs yet")
    left = [row for row in rows if row["log2_value"]]
    if zeros := len(rows) - len(left):
        print(f"note: {zeros} runs at value 0 are left out: a logarithmic axis has no place for it", file=sys.stderr)
    if not left:
        raise UserError(f"{path} has runs at value 0 alone; expected values above 0")
    return left


def _best(rows: list[dict[str, str]], columns: list[str], path: Path) -> Best:
    by_value: dict[float, dict[str, float | None]] = defaultdict(dict)
    hashes: dict[tuple[float, str], str] = {}
    lost: dict[float, str] = {}
    for row in rows:
        value = finite(row["log2_value"], f"{path}: log2_value")
        seed, name = row["seed"], row.get("config_hash", "")
        if hashes.setdefault((value, seed), name) != name:
            raise UserError(
                f"{path} has two different runs of {row['optimizer']} at 2^{value:g}, seed {seed} "
                f"({hashes[value, seed][:8]} and {name[:8]}): no column tells what differs; make a table of each"
            )
        by_value[value][seed] = loss = loss_of(row["loss"], f"{path}: loss")
        if loss is None and lost.get(value) != "diverged":
            lost[value] = "stopped" if row.get("stopped") else "diverged"
    known = {
        value: {} if None in found.values() else {seed: loss for seed, loss in found.items() if loss is not None}
        for value, found in sorted(by_value.items())
    }
    (curve,), _ = level([Curve(rows[0]["width"], 0.0, known, frozenset())])
    losses = {value: curve.means.get(value) for value in known}
    left = {value: loss for value, loss in losses.items() if loss is not None}
    best = min(left, key=lambda value: left[value]) if left else None
    return Best(
        group={column: rows[0][column] for column in columns},
        losses=losses,
        leveled=len({frozenset(found) for found in known.values() if found}) > 1,
        lost=lost,
        best=best,
        edge=best in (min(losses), max(losses)),
        unigram_loss=float(rows[0]["unigram_loss"]),
        steps=max(int(float(row["steps"])) for row in rows),  # a run that diverged made fewer
    )


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
