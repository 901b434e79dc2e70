"""From tables of sweeps to a ladder: the loss of every model size and number of tokens at its best base value."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mup_lightning.config.forecast import CURVE_POINTS
from mup_lightning.config.identity import complete
from mup_lightning.config.schema import Config
from mup_lightning.errors import UserError
from mup_lightning.studies.forecast.law import Cell
from mup_lightning.studies.sweep.grid import look_up
from mup_lightning.studies.sweep.results import Record, read_trials
from mup_lightning.studies.transfer import losses
from mup_lightning.studies.transfer.estimate import optima_of

NEEDED = (*losses.COLUMNS, "width", "depth", "parameters", "tokens")

_SCALE = tuple(
    "model.width model.depth model.heads model.head_size model.kv_heads model.vocab_size data.batch_size seed trainer. "
    "recipe.base_ recipe.lr recipe.time_rule recipe.tokens recipe.law recipe.scale_clip schedule.warmup rules. "
    "derivation".split()
)
"""What may differ between the ladder and its target: sizes, what follows them, and what the best value makes up for."""

_SAME = ("recipe.optimizer", "recipe.parametrization", "data.tokenizer")
"""What must not differ: the other has another law, or its losses have another unit."""


@dataclass(frozen=True)
class Ladder:
    """Cells in order of their FLOPs, how many runs they rest on, the corpus's hash (empty: unknown), and caveats."""

    cells: list[Cell]
    runs: int
    corpus: str
    caveats: list[str]


def read_ladder(places: Sequence[Path], target: Config) -> Ladder:
    """Those runs of some sweeps that are like the target but for their size. UserError: they cannot be compared."""
    tables, records = [], dict[str, Record]()
    for place in places:
        table = losses.read_losses(place, NEEDED)
        sizes = {name: losses.numbers(table, name, "a number above 0") for name in ("width", "depth", "parameters")}
        tables.append(table.assign(**sizes, tokens=losses.numbers(table, "tokens", "a number above 0", empty=True)))
        folder = place if place.is_dir() else place.parent
        records |= read_trials(folder) if (folder / "trials").is_dir() else {}
    runs = pd.concat(tables)
    runs = runs[(runs["config_hash"] == "") | ~runs.duplicated(["config_hash", "log2_value", "seed"])]  # two axes
    shared = [column for column in ("value", "corpus", "unigram_loss") if column in runs]
    runs, caveats = _alike(runs, records, target)
    losses.refuse_different(runs, [0] * len(runs), shared)
    # A run that diverged stopped early: it counts with the tokens of the other runs of its size and length.
    kept = runs["tokens"].where(runs["loss"].notna())
    cell_of = ["width", "depth", "parameters", "batch", "planned"]
    runs = runs.assign(tokens=kept.fillna(kept.groupby([runs[name] for name in cell_of]).transform("max")))
    if (lost := runs["tokens"].isna()).any():
        caveats.append(f"{lost.sum()} runs diverged at every value of their size, which is left out")
        runs = runs[~lost]
    if runs.empty:
        raise UserError("no run of the ladder has a loss, all diverged; lower the base values")
    place = runs.groupby([*cell_of[:4], "tokens"]).ngroup().astype(float)
    names = [f"{n:,.0f} parameters, {d:,.0f} tokens" for n, d in zip(runs["parameters"], runs["tokens"], strict=True)]
    runs = runs.assign(position=place, size=names)
    found_at, noise = optima_of(runs)
    best: dict[tuple[float, float], Cell] = {}
    for curve, found in found_at:
        own = runs[runs["position"] == curve.position]
        first = own.iloc[0]
        if found is None:
            caveats.append(f"at {curve.size} every value diverged: left out")
            continue
        if found.edge and len(curve.values) > 1:
            caveats.append(f"at {curve.size} the best value is the last one tried: its loss may be too high")
        hashes = own[own["log2_value"] == found.best_value]["config_hash"]
        seen = [records.get(name, {"result": {}})["result"].get("curve") for name in hashes]
        whole = all(one and len(one) == CURVE_POINTS for one in seen)
        width, depth, parameters, tokens = (int(first[side]) for side in ("width", "depth", "parameters", "tokens"))
        se = float(np.linalg.norm(curve.root[curve.values == found.best_value]))
        along = tuple(np.mean(seen, axis=0).tolist()) if whole else ()
        noisy = (se, noise.between_seeds or 0.0, noise.dof)
        cell = Cell(width, depth, parameters, tokens, found.loss, *noisy, found.best_value, along)
        key = (cell.size, cell.tokens)
        best[key] = min(cell, best.get(key, cell), key=lambda cell: cell.loss)
    if noise.residual is None:
        caveats.append("the ladder has one seed, so that its noise shows only in how far it misses the law")
    corpora = [corpus for corpus in runs["corpus"].unique() if corpus]
    return Ladder(sorted(best.values(), key=lambda cell: cell.flops), len(runs), "".join(corpora), caveats)


def _alike(runs: pd.DataFrame, records: Mapping[str, Record], target: Config) -> tuple[pd.DataFrame, list[str]]:
    """The runs like the target, with columns `batch` and `planned` (steps), text or empty; and what all differ in."""
    columns, theirs = losses.options(runs), complete(target, {})
    known: dict[str, dict[str, Any]] = {}
    for name in {*runs["config_hash"]} & records.keys():
        if config := records[name]["config"]:
            length = {"trainer.max_steps": config["trainer"]["max_steps"]}
            known[name] = complete(Config.from_plain(config), {}) | length
    settings: list[dict[str, str]] = []
    for row in runs.fillna("").to_dict("records"):
        said = {f"recipe.{name}": row.get(name, "") for name in ("optimizer", "parametrization", "branch_depth")}
        said |= {key: row[key] for key in columns if row[key] != ""} | known.get(row["config_hash"], {})
        said.pop(row.get("value"), None)
        settings.append({key: losses.spelling(value) for key, value in said.items() if value != ""})
    caveats, keep = [], np.ones(len(runs), dtype=bool)
    for key in sorted({key for own in settings for key in own}):
        if key.startswith(_SCALE) and not (key in columns and key.startswith("rules.")):
            continue
        try:
            wanted = losses.spelling(theirs[key] if key in theirs else look_up(target, key))
        except UserError:  # a column of a key that is no more
            continue
        values = {own.get(key, wanted) for own, kept in zip(settings, keep, strict=True) if kept}
        words = f"{key} is {' and '.join(sorted(values))} in the ladder, {wanted} in the target"
        if wanted in values:
            keep &= [own.get(key, wanted) == wanted for own in settings]
        elif len(values) > 1 or key in _SAME:
            raise UserError(f"{words}; expected a ladder of models like the target but for their size")
        else:
            caveats.append(f"{words}, which the law does not know of")
    steps, batch = ([own.get(key, "") for own in settings] for key in ("trainer.max_steps", "data.batch_size"))
    if not keep.all():
        caveats.insert(0, f"{np.sum(~keep)} of {len(runs)} runs are left out: they are not like the target")
    if len({size for size, kept in zip(batch, keep, strict=True) if kept}) > 1:
        caveats.append("batch sizes differ in the ladder: at equal N and D the best one counts")
    return runs.assign(batch=batch, planned=steps)[keep], caveats
