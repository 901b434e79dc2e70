"""The folder of a sweep: a file for each finished trial, and the table that is made of them.

FOLDER/trials/HASH.json holds the configuration and the result of a trial. It is written whole, so a trial is finished
if and only if its file is there. FOLDER/results.csv has a row for each axis of each finished trial of the sweep that
was run last, and is made anew when a sweep begins, and whenever a trial ends.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mup_lightning.errors import UserError
from mup_lightning.files import OneWriter, file_sha256, make_folder, read_json, write_atomic, write_json, write_sums
from mup_lightning.studies.sweep.grid import Trial
from mup_lightning.studies.transfer.losses import LOSS, numbers, read_table

COLUMNS = """
    parametrization optimizer branch_depth width depth axis size value log2_value seed loss train_loss unigram_loss
    steps tokens parameters seconds tokens_per_second noise_scale diverged corpus config_hash
""".split()
"""Of every table, in order; the keys that vary in the sweep follow."""

_SINCE = {"noise_scale"}  # columns that the first tables lack

_ORDER = "parametrization optimizer branch_depth axis width depth size value log2_value seed".split()
"""The columns that rows are sorted by."""

Record = dict[str, Any]
"""A trial's file: `config`, nested (None: unknown, from a table alone), and `result`, column -> value.

A result has a `curve`, too, which is no column: the mean training losses of CURVE_POINTS equal parts of the run.
"""


def trial_file(folder: Path, name: str) -> Path:
    """Where the result of the trial with this hash is, once it is finished."""
    return folder / "trials" / f"{name}.json"


def read_trials(folder: Path, known: dict[str, Record] | None = None) -> dict[str, Record]:
    """Hash -> record of every finished trial, and of those known; or of the rows of results.csv. UserError: damaged."""
    records = {} if known is None else known
    if not (folder / "trials").is_dir() and (folder / "results.csv").exists():
        table = read_table(folder / "results.csv", [column for column in COLUMNS if column not in _SINCE])
        numbers(table, "loss", LOSS, empty=True)  # as the report, which reads what is made of it
        return {row["config_hash"]: {"config": None, "result": row} for row in table.to_dict("records")}
    expected = "a trial's result; remove the file, and the sweep runs this trial again"
    for file in (folder / "trials").glob("*.json"):
        if file.stem in records:
            continue
        record = read_json(file, expected)
        if isinstance(record, dict) and "rows" in record:  # of an earlier version
            record = {"result": record["rows"][0]} | record
        result = record.get("result") if isinstance(record, dict) else None
        if not isinstance(result, dict) or not {"loss", "steps", "seconds", "diverged"} <= result.keys():
            raise UserError(f"{file} is damaged: it has no result; expected {expected}")
        records[file.stem] = record
    return records


def prepare(folder: Path, trials: Sequence[Trial]) -> dict[str, Record]:
    """Make a folder ready for a sweep, a published results.csv included; its records. UserError: it cannot be used."""
    make_folder(folder)
    try:
        with _lock(folder):
            records = read_trials(folder)
            if not (folder / "trials").is_dir():
                adopted = folder / "trials.unfinished"
                adopted.mkdir(exist_ok=True)
                for name, record in records.items():
                    write_json(adopted / f"{name}.json", record)
                adopted.rename(folder / "trials")
        write_table(folder, trials, records)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}; name another folder (--out)") from error
    return records


def write_table(folder: Path, trials: Sequence[Trial], records: dict[str, Record]) -> None:
    """Make results.csv of these trials, after adding to the records those of trials that have ended since."""
    with _lock(folder):
        known = read_trials(folder, records)
        rows = [row for trial in trials if trial.hash in known for row in rows_of(trial, known[trial.hash]["result"])]
        columns = list(dict.fromkeys([*COLUMNS, *trials[0].varied]))
        frame = pd.DataFrame(rows, columns=columns, dtype=object).sort_values(_ORDER, key=_numbers)
        write_atomic(folder / "results.csv", frame.to_csv(index=False, lineterminator="\n"))
        write_sums(folder, {"results.csv": file_sha256(folder / "results.csv")})


def _lock(folder: Path) -> OneWriter:
    """Held while results.csv is written."""
    return OneWriter(folder / "writer.lock", f"the table in {folder}", wait=True)


def _numbers(column: pd.Series) -> pd.Series:
    """What a column is sorted by: numbers before text."""
    numbers = pd.to_numeric(column, errors="coerce")
    return numbers if numbers.notna().any() else column.astype(str)


def rows_of(trial: Trial, result: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a trial, one for each of its axes: what only the run knows, and what its configuration says."""
    recipe, model = trial.config.recipe, trial.config.model
    own = {
        "parametrization": recipe.parametrization,
        "optimizer": recipe.optimizer,
        "branch_depth": recipe.branch_depth if recipe.parametrization == "mup" else None,
        "width": model.width,
        "depth": model.depth,
        "value": trial.key,
        "log2_value": math.log2(trial.value) if trial.value > 0 else None,
        "seed": trial.config.seed,
        "unigram_loss": trial.checked.unigram_loss,
        "parameters": trial.checked.parameters,
        "corpus": trial.checked.corpus,
        "config_hash": trial.hash,
    }
    sizes = {"width": model.width, "depth": model.depth, "both": f"{model.width}x{model.depth}"}
    sizes |= {"tokens": trial.config.tokens, "batch": trial.config.tokens_per_step}
    return [result | own | {"axis": axis, "size": sizes[axis]} | trial.varied for axis in trial.axes]
