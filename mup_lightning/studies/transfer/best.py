"""The best value of each group of a sweep's table, and `mup-lightning report best`."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from mup_lightning import tables
from mup_lightning.studies.transfer.estimate import adjust_for_seeds
from mup_lightning.studies.transfer.losses import COLUMNS, numbers, options, read_losses
from mup_lightning.studies.transfer.settings import BestSettings
from mup_lightning.studies.transfer.transfer import refuse_different, refuse_twice

GROUP = ("optimizer", "parametrization", "branch_depth", "width", "depth", "value")
"""Runs that agree in these, and in all further options of the table, are one group."""

NEEDED = tuple(dict.fromkeys((*GROUP, *COLUMNS, "unigram_loss", "steps")))


@dataclass(frozen=True)
class Best:
    """One group of a table.

    Attributes:
        group: column -> text of what its runs share.
        losses: log2 of the value -> mean loss over the seeds, adjusted where these differ between values; None where
            any seed diverged or was stopped as hopeless.
        leveled: values were run with different seeds, so losses are not plain means.
        lost: log2 of the values without a loss -> "diverged" or "stopped".
        best: log2 of the value with the lowest loss; None where all are lost.
        edge: the best value is the smallest or largest tried: a better one may lie beyond.
        unigram_loss: loss of a unigram model of the corpus, nats per token.
        steps: steps of every run that finished; where none did, the most that any run made.
    """

    group: dict[str, str]
    losses: dict[float, float | None]
    leveled: bool
    lost: dict[float, str]
    best: float | None
    edge: bool
    unigram_loss: float
    steps: int


def run(settings: BestSettings) -> int:
    """Print the best values.

    Raises:
        UserError: see `best_values`.
    """
    found = best_values(settings.results)
    if settings.json:
        print(json.dumps([asdict(best) for best in found], indent=1))
        return 0
    print((tables.markdown if settings.markdown else tables.text)(lines(found)))
    steps = " or ".join(str(count) for count in sorted({best.steps for best in found}))
    unigram = " or ".join(dict.fromkeys(f"{loss:.3f}" for loss in sorted({best.unigram_loss for best in found})))
    print(f"\n{steps} steps; a unigram model has {unigram} nats per token")
    if any(best.leveled for best in found):
        print("Losses are means, adjusted where values were run with different seeds (docs/method/transfer.md)")
    return 0


def best_values(path: Path) -> list[Best]:
    """Read a sweep's table and find the best value of every group, groups in order of their best losses.

    Args:
        path: results.csv of `mup-lightning sweep`, or its folder.

    Raises:
        UserError: the table cannot be read, holds two runs of one value and seed, or a group mixes texts or steps.
    """
    runs = read_losses(path, NEEDED)
    columns = [*GROUP, *options(runs)]
    groups = [
        tuple((column, row[column]) for column in columns if column != row["value"]) for row in runs.to_dict("records")
    ]
    runs = runs.assign(group=groups, unigram_loss=numbers(runs, "unigram_loss", "a number"))
    run_of = ["group", "log2_value", "seed", "config_hash"]
    on_another_axis = runs.duplicated(run_of) & ~runs.duplicated([*run_of, "axis"])
    runs = runs[~on_another_axis]
    refuse_different(runs, runs["group"], ["unigram_loss", "steps"])
    found = [_best(dict(group), own) for group, own in runs.groupby("group", sort=False)]
    return sorted(found, key=lambda best: math.inf if best.best is None else best.losses[best.best] or 0.0)


def _best(group: dict[str, str], runs: pd.DataFrame) -> Best:
    runs = runs.assign(size=group["width"], position=0.0)
    refuse_twice(runs)
    (curve,), _ = adjust_for_seeds(runs)
    means, values = curve.trained, curve.values.tolist()
    best = min(means, key=lambda value: means[value], default=None)
    trained = runs[runs["log2_value"].isin(means)]
    ended = runs[runs["loss"].notna()] if runs["loss"].notna().any() else runs
    return Best(
        group=group,
        losses={value: means.get(value) for value in values},
        leveled=trained.groupby("log2_value")["seed"].agg(frozenset).nunique() > 1,
        lost=curve.lost,
        best=best,
        edge=best in (values[0], values[-1]),
        unigram_loss=float(ended["unigram_loss"].max()),
        steps=int(ended["steps"].max()),
    )


def lines(found: Sequence[Best]) -> list[list[str]]:
    """A table for people: a line per group under a heading, without the columns that all groups share."""
    columns = dict.fromkeys(column for best in found for column in best.group)
    shown = [c for c in columns if len({best.group.get(c, "") for best in found}) > 1] or ["optimizer"]
    value = "value" if "value" in shown else found[0].group["value"]
    rows = [[*shown, f"best {value}", "loss", "others tried"]]
    for best in found:
        texts = {v: best.lost[v] if loss is None else f"{loss:.3f}" for v, loss in best.losses.items()}
        name = "-" if best.best is None else f"2^{best.best:g}" + (" (edge)" if best.edge else "")
        others = ", ".join(f"2^{v:g} {text}" for v, text in texts.items() if v != best.best)
        loss = "diverged" if best.best is None else texts[best.best]
        rows.append([*(best.group.get(column, "") for column in shown), name, loss, others])
    return rows
