"""The results of a sweep: one JSON file for each trial, and the table that is made of them.

FOLDER/trials/HASH.json holds a trial's configuration and its rows, one for each axis and swept value that it was asked
for. It is written whole, so a trial is finished if and only if its file is there. FOLDER/results.csv is made of all of
these files.
"""

import csv
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

from mup_lightning.errors import UserError
from mup_lightning.files import make_folder, read_json, write_atomic, write_json
from mup_lightning.studies.sweep.grid import Trial, look_up

COLUMNS = """
    parametrization optimizer branch_depth width depth axis size value log2_value seed loss train_loss unigram_loss
    steps tokens parameters seconds tokens_per_second diverged stopped early_loss corpus config_hash
""".split()
"""Of every table, in order; the keys that vary in the sweep follow. `stopped` and `early_loss` are those of earlier
versions, which gave up runs that could not win; now they are empty."""

_ORDER = "parametrization optimizer branch_depth axis width depth value log2_value seed".split()
"""The columns that rows are sorted by."""

Row = dict[str, Any]
Record = dict[str, Any]
"""A trial's file: `config`, nested (None: unknown, from an earlier version), and `rows`."""


def trial_file(folder: Path, name: str) -> Path:
    """Where the result of the trial with this hash is, once it is finished."""
    return folder / "trials" / f"{name}.json"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a sweep's folder, which is made if it is missing, alone. The lock ends with its process.

    Raises:
        UserError: the folder cannot be made or locked.
    """
    make_folder(folder)
    lock = FileLock(folder / "sweep.lock", fallback_to_soft=False)
    try:
        lock.acquire()
    except OSError as error:
        raise UserError(
            f"{folder} cannot be locked ({error.strerror}); choose a folder (--out) on a file system with locks"
        ) from error
    try:
        yield
    finally:
        lock.release()


def read_trials(folder: Path) -> dict[str, Record]:
    """Hash -> record of every finished trial; of those in a table of an earlier version if there is nothing else.

    Raises:
        UserError: a file is damaged, or the table is not a sweep's.
    """
    if not (folder / "trials").is_dir():
        return _earlier_version(folder)
    expected = "a trial's result; remove the file, and the sweep runs this trial again"
    return {file.stem: read_json(file, expected) for file in (folder / "trials").glob("*.json")}


def prepare(folder: Path, trials: Sequence[Trial]) -> set[str]:
    """Make a folder ready for a sweep, and bring its table up to date.

    The rows of an earlier version's table become files of trials. A finished trial gets the rows and the columns that
    the sweep asks for and it lacks: it may have been run for another axis, or under another swept value.

    Args:
        folder: of the sweep.
        trials: of the whole sweep.

    Returns:
        Hashes of finished trials.

    Raises:
        UserError: the folder cannot be written, something in it is damaged, or its rows are of another corpus.
    """
    with locked(folder):
        records = read_trials(folder)
        _refuse_other_corpus(folder, records, {trial.checked.corpus for trial in trials})
        if not (folder / "trials").is_dir():
            adopted = folder / "trials.unfinished"
            adopted.mkdir(exist_ok=True)
            for name, record in records.items():
                write_json(adopted / f"{name}.json", record)
            adopted.rename(folder / "trials")
        for trial in trials:
            if trial.hash in records:
                _complete(folder, trial, records[trial.hash])
        _write_table(folder)
    return set(records)


def write_table(folder: Path) -> None:
    """Make results.csv of the files of all finished trials."""
    with locked(folder):
        _write_table(folder)


def measured(trial: Trial, **result: Any) -> Row:
    """The part of a trial's row that is the same on all axes.

    Args:
        trial: that was run.
        result: values of the columns that only the run knows.
    """
    recipe, model, data = trial.config.recipe, trial.config.model, trial.config.data
    return {
        "parametrization": recipe.parametrization,
        "optimizer": recipe.optimizer,
        "branch_depth": recipe.branch_depth if recipe.parametrization == "mup" else None,
        "width": model.width,
        "depth": model.depth,
        "seed": trial.config.seed,
        "unigram_loss": trial.checked.unigram_loss,
        "tokens": result["steps"] * data.batch_size * model.context,
        "parameters": trial.checked.parameters,
        "corpus": trial.checked.corpus,
        "config_hash": trial.hash,
    } | result


def rows_of(trial: Trial, row: Row) -> list[Row]:
    """The rows of a trial, one for each of its axes.

    Args:
        trial: says axes, swept value and varied keys.
        row: says the rest.
    """
    width, depth = trial.config.model.width, trial.config.model.depth
    value = float(look_up(trial.config, trial.value))
    swept = {"value": trial.value, "log2_value": math.log2(value) if value > 0 else None} | trial.varied
    sizes = {"width": width, "depth": depth, "both": f"{width}x{depth}"}
    return [row | {"axis": axis, "size": sizes[axis]} | swept for axis in trial.axes]


def _complete(folder: Path, trial: Trial, record: Record) -> None:
    missing = {key: value for key, value in trial.varied.items() if value not in (None, "")}
    rows = [row | {key: value for key, value in missing.items() if not row.get(key)} for row in record["rows"]]
    present = {(row["axis"], row["value"]) for row in rows}
    rows += [row for row in rows_of(trial, rows[0]) if (row["axis"], row["value"]) not in present]
    if rows != record["rows"]:
        write_json(trial_file(folder, trial.hash), record | {"rows": rows})


def _write_table(folder: Path) -> None:
    rows = [row for record in read_trials(folder).values() for row in record["rows"]]
    frame = pd.DataFrame(rows, dtype=object)
    further = [column for column in frame if column not in COLUMNS]
    frame = frame.reindex(columns=COLUMNS + further).sort_values(_ORDER, key=_numbers_first, kind="stable")
    write_atomic(folder / "results.csv", frame.to_csv(index=False, lineterminator="\n"))


def _numbers_first(column: Any) -> Any:
    numbers = pd.to_numeric(column, errors="coerce")
    return numbers if numbers.notna().any() else column.astype(str)


def _earlier_version(folder: Path) -> dict[str, Record]:
    """The records that a results.csv holds, the configurations of configurations.json added if there is one."""
    path = folder / "results.csv"
    if not path.exists():
        return {}
    remedy = "choose another folder (--out), or move the file away, and the sweep begins anew"
    try:
        text = path.read_text(encoding="utf-8")
        text = text[: text.rfind("\n") + 1]  # after a power cut, the last row may lack its end
        rows = list(csv.DictReader(StringIO(text)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not the results.csv of a sweep ({error}); {remedy}") from None
    if any(None in row or None in row.values() or not row.get("config_hash") for row in rows):
        raise UserError(f"{path} has rows without a config_hash, or of another length than the heading; {remedy}")
    file = folder / "configurations.json"
    configs = read_json(file, "the configurations of a sweep, by their hash") if file.exists() else {}
    records: dict[str, Record] = {}
    for row in rows:
        name = row["config_hash"]
        records.setdefault(name, {"config": configs.get(name), "rows": []})["rows"].append(row)
    return records


def _refuse_other_corpus(folder: Path, records: dict[str, Record], ours: set[str]) -> None:
    """One table, one set of data: losses on different text cannot be compared."""
    if others := {row["corpus"] for record in records.values() for row in record["rows"]} - ours:
        raise UserError(
            f"{folder} has results on another corpus (manifest {min(others)[:12]}, this sweep reads "
            f"{', '.join(sorted(name[:12] for name in ours))}); choose another folder (--out)"
        )
