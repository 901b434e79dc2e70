"""The best value of each group of a sweep's table: `mup-lightning report best`."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from mup_lightning import tables
from mup_lightning.errors import UserError
from mup_lightning.studies.transfer.curves import curves_of
from mup_lightning.studies.transfer.losses import (
    COLUMNS,
    numbers,
    options,
    read_losses,
    refuse_different,
    refuse_twice,
)
from mup_lightning.typed import Typed

GROUP = ("optimizer", "parametrization", "branch_depth", "width", "depth", "value")
"""Runs that agree in these, and in all further options of the table, are one group."""

NEEDED = tuple(dict.fromkeys((*GROUP, *COLUMNS, "unigram_loss", "steps")))


@dataclass
class BestSettings(Typed, prefix="--"):
    """Print the lowest mean loss of each group and the losses of the other values.

    Attributes:
        results: results.csv of `mup-lightning sweep`, or its folder.
        json: print JSON.
        markdown: print tables in Markdown.
    """

    results: Path
    json: bool = False
    markdown: bool = False

    def __post_init__(self) -> None:
        """Raise UserError if two forms of output are requested, or a value is out of bounds."""
        super().__post_init__()
        if self.json and self.markdown:
            raise UserError("--json and --markdown are two forms of the same report; choose one")


def run(settings: BestSettings) -> int:
    """Print the best values.

    Raises:
        UserError: see `best_values`.
    """
    found = best_values(settings.results)
    if settings.json:
        print(json.dumps(found, indent=1))
        return 0
    print((tables.markdown if settings.markdown else tables.text)(_lines(found)))
    steps = " or ".join(str(count) for count in sorted({best["steps"] for best in found}))
    unigram = " or ".join(dict.fromkeys(f"{loss:.3f}" for loss in sorted({best["unigram_loss"] for best in found})))
    print(f"\n{steps} steps; a unigram model has {unigram} nats per token")
    if any(best["leveled"] for best in found):
        print("Losses are means, adjusted where values were run with different seeds (docs/method/transfer.md)")
    return 0


def best_values(path: Path) -> list[dict[str, Any]]:
    """Read a sweep's table and find the best value of every group, groups in order of their best losses.

    Args:
        path: results.csv of `mup-lightning sweep`, or its folder.

    Returns:
        For each group:
        group: column -> text of what its runs share.
        losses: log2 of the value -> mean loss over the seeds, adjusted where these differ between values; None where
            any seed diverged.
        leveled: values were run with different seeds, so losses are not plain means.
        lost: log2 of the values without a loss -> "diverged".
        best: log2 of the value with the lowest loss; None where all are lost.
        edge: the best value is the smallest or largest tried: a better one may lie beyond.
        unigram_loss: loss of a unigram model of the corpus, nats per token.
        steps: steps of every run that finished; where none did, the most that any run made.

    Raises:
        UserError: the table cannot be read, holds two runs of one value and seed, or a group mixes texts or steps.
    """
    runs = read_losses(path, NEEDED)
    columns = [*GROUP, *options(runs)]
    rows = runs.to_dict("records")
    groups = [tuple((column, row[column]) for column in columns if column != row["value"]) for row in rows]
    runs = runs.assign(group=groups, position=0.0, unigram_loss=numbers(runs, "unigram_loss", "a number"))
    run_of = ["group", "log2_value", "seed", "config_hash"]
    runs = runs[~runs.duplicated(run_of) | runs.duplicated([*run_of, "axis"])]  # a run may stand there on two axes
    refuse_different(runs, runs["group"], ["unigram_loss", "steps"])
    found = [_best(dict(group), own) for group, own in runs.groupby("group", sort=False)]
    return sorted(found, key=lambda best: math.inf if best["best"] is None else best["losses"][best["best"]])


def _best(group: dict[str, str], runs: pd.DataFrame) -> dict[str, Any]:
    runs = runs.assign(size=group["width"])
    refuse_twice(runs)
    (curve,), _ = curves_of(runs)
    means, values = curve.trained, curve.values.tolist()
    best = min(means, key=lambda value: means[value], default=None)
    seeds = runs[runs["log2_value"].isin(means)].groupby("log2_value")["seed"].agg(frozenset)
    ended = runs[runs["loss"].notna()] if runs["loss"].notna().any() else runs
    return {
        "group": group,
        "losses": {value: means.get(value) for value in values},
        "leveled": seeds.nunique() > 1,
        "lost": dict.fromkeys(curve.lost, "diverged"),
        "best": best,
        "edge": best in (values[0], values[-1]),
        "unigram_loss": float(ended["unigram_loss"].max()),
        "steps": int(ended["steps"].max()),
    }


def _lines(found: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A table for people: a line per group under a heading, without the columns that all groups share."""
    columns = dict.fromkeys(column for best in found for column in best["group"])
    shown = [c for c in columns if len({best["group"].get(c, "") for best in found}) > 1] or ["optimizer"]
    value = "value" if "value" in shown else found[0]["group"]["value"]
    rows = [[*shown, f"best {value}", "loss", "others tried"]]
    for best in found:
        texts = {v: "diverged" if loss is None else f"{loss:.3f}" for v, loss in best["losses"].items()}
        name = "-" if best["best"] is None else f"2^{best['best']:g}" + (" (edge)" if best["edge"] else "")
        others = ", ".join(f"2^{v:g} {text}" for v, text in texts.items() if v != best["best"])
        loss = texts.get(best["best"], "diverged")
        rows.append([*(best["group"].get(column, "") for column in shown), name, loss, others])
    return rows
