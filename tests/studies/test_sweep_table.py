"""The folder of a sweep: files of trials, the table made of them, published tables, and claims."""

import re
import shutil
import subprocess
import sys

import pytest

from mup_lightning import files
from mup_lightning.errors import UserError
from mup_lightning.studies.sweep.grid import expand
from mup_lightning.studies.sweep.results import COLUMNS, prepare, read_trials, trial_file, write_table
from mup_lightning.studies.sweep.run import dry_run, run_trials
from mup_lightning.studies.sweep.spec import load
from tests.studies.sweeps import table, tiny_sweep, write
from tests.studies.tables import SAVED

WIDTH, DEPTH = {"vary": {"model.width": [16, 32]}}, {"vary": {"model.depth": [1, 2]}}
DONE = {"loss": 2.5, "train_loss": 2.25, "steps": 60, "tokens": 7680, "seconds": 2.0, "tokens_per_second": 3840.0,
        "diverged": ""}  # fmt: skip


def trials_of(corpus, tmp_path, *grids, **changes):
    vary = {"recipe.lr": {"log2": [-8]}, "seed": [0, 1]}
    return expand(load(write(tmp_path / "file", tiny_sweep(corpus, grids=list(grids), **({"vary": vary} | changes)))))


@pytest.fixture
def trials(corpus, tmp_path):
    return trials_of(corpus, tmp_path, WIDTH, DEPTH)


def finish(folder, trials, **result):
    """Write files as if the trials had been run."""
    known = prepare(folder, trials)
    for trial in trials:
        files.write_json(trial_file(folder, trial.hash), {"config": None, "result": DONE | result})
    write_table(folder, trials, known)


def test_rows_are_tidy(trials, tmp_path):
    finish(tmp_path, trials)
    rows = table(tmp_path)
    assert list(rows[0]) == [*COLUMNS, "recipe.lr", "model.width", "model.depth"]
    assert len({row["config_hash"] for row in rows}) == len(trials) == 6
    found = [(row["axis"], int(row["size"]), int(row["seed"])) for row in rows]
    assert found == [(axis, size, seed) for axis, sizes in (("depth", (1, 2)), ("width", (16, 32))) for size in sizes
                     for seed in (0, 1)]  # fmt: skip
    wanted = {
        "parametrization": "mup", "optimizer": "adamw", "branch_depth": "2", "value": "recipe.lr", "log2_value": "-8.0",
        "loss": "2.5", "tokens": str(60 * 8 * 16), "diverged": "", "recipe.lr": "0.00390625",
        "corpus": trials[0].checked.corpus, "unigram_loss": repr(trials[0].checked.unigram_loss),
    }  # fmt: skip
    assert {key: rows[0][key] for key in wanted} == wanted
    for trial in trials[3:]:
        trial_file(tmp_path, trial.hash).unlink()
    printed = dry_run(trials, tmp_path, 1)
    assert "6 configurations, 3 left: 23,040 tokens, " in printed
    assert "1 would run at once (as 3 finished ones took)" in printed


def test_what_is_finished_serves_every_sweep_of_the_folder(corpus, tmp_path, capsys):
    """A width grid, then a depth grid too, then another swept value: the table is of the last, and nothing is run."""
    out = tmp_path / "out"
    first, both = trials_of(corpus, tmp_path, WIDTH), trials_of(corpus, tmp_path, WIDTH, DEPTH)
    finish(out, first)
    assert prepare(out, both).keys() == {trial.hash for trial in first}
    finish(out, [trial for trial in both if trial.config.model.depth == 2])
    assert run_trials(both, out, 1).finished == len(both)
    rows = table(out)
    assert len(rows) == 8  # the base is on both axes
    assert {row["model.depth"] for row in rows} == {"1", "2"}  # a column of the second grid's, filled for the first too
    run_trials(both[:1], out, 1, whole=first)  # a shard
    assert {(row["axis"], row["depth"]) for row in table(out)} == {("width", "1")}
    assert "leaves out 2 results" in capsys.readouterr().err
    run_trials(trials_of(corpus, tmp_path, WIDTH, DEPTH, value="recipe.init_std"), out, 1)
    assert {(row["value"], row["loss"]) for row in table(out)} == {("recipe.init_std", "2.5")}


def test_value_zero_has_no_logarithm(corpus, tmp_path):
    vary = {"recipe.weight_decay": [0, 0.25]}
    finish(tmp_path, trials_of(corpus, tmp_path, {}, value="recipe.weight_decay", vary=vary))
    found = {(row["recipe.weight_decay"], row["log2_value"]) for row in table(tmp_path)}
    assert found == {("0.0", ""), ("0.25", "-2.0")}


def test_a_table_alone_is_continued(corpus, tmp_path):
    """A published one, or an earlier version's: its runs are not repeated, its cells stay as they are."""
    trials, out = trials_of(corpus, tmp_path, {"vary": {"seed": [0, 1, 2]}}), tmp_path / "out"
    finish(out, trials[:2], loss="2.50")
    before = (out / "results.csv").read_text()
    for file in (out / "trials").iterdir():
        file.unlink()
    (out / "trials").rmdir()
    (out / "results.csv").write_bytes(SAVED["commas"](before))  # as a spreadsheet has saved it
    assert len(read_trials(out)) == 2
    assert not (out / "trials").exists()  # looking at it changes nothing
    assert prepare(out, trials).keys() == {trial.hash for trial in trials[:2]}
    assert sorted((out / "results.csv").read_text().splitlines()) == sorted(before.splitlines())
    (out / "results.csv").write_text(before.replace(",2.50,", ",good,"))
    shutil.rmtree(out / "trials")
    with pytest.raises(UserError, match=r"results.csv, row 2: loss is 'good'; expected nats per token"):
        prepare(out, trials)
    (out / "results.csv").write_text(before.replace(",2.0,3840.0,", ",,,"))  # does not say how long they took
    assert "a guess: " in dry_run(trials, out, 1)
    assert prepare(out, trials).keys() == {trial.hash for trial in trials[:2]}
    trial_file(out, trials[0].hash).unlink()  # to run it again
    assert prepare(out, trials).keys() == {trials[1].hash}
    assert len(table(out)) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("results.csv", b"a,b\n1,2\n", "lacks the columns parametrization, "),
        *(
            ("trials/abc.json", content, "is damaged: it has no result; expected a trial's result; remove the file")
            for content in (b"{}", b"[]", b"3", b'{"result": {}}', b'{"result": [1]}', b'{"rows": [{}]}')
        ),
        ("trials/abc.json", b"{", "is damaged: Expecting property name enclosed in double quotes: line 1 column 2"),
    ],
)
def test_a_damaged_folder_is_one_line(trials, tmp_path, refused, name, content, message):
    out = tmp_path / "out"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_bytes(content)
    assert refused(["sweep", tmp_path / "file" / "sweep.yaml", "--out", out]).startswith(f"{out / name} {message}")
    assert (out / name).read_bytes() == content


@pytest.mark.parametrize("name", ["plain/below/it", "link"])
def test_a_dry_run_says_the_same_of_the_folder(trials, tmp_path, refused, name):
    (tmp_path / "plain").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    arguments = ["sweep", tmp_path / "file" / "sweep.yaml", "--out", tmp_path / name]
    for more in ([], ["--dry-run"]):
        assert re.match(rf"{tmp_path}/(plain|link) is not a folder; expected one", refused([*arguments, *more]))
    assert not (tmp_path / "nowhere").exists()


def test_a_claim_holds_between_processes_and_dies_with_its_holder(trials, tmp_path):
    code = (
        "import sys; from pathlib import Path; from mup_lightning.files import OneWriter\n"
        "held = [OneWriter(Path(name), name) for name in sys.argv[1:]]\n"
        "for lock in held: lock.__enter__()\n"
        "print(flush=True); sys.stdin.read()\n"
    )
    prepare(tmp_path, trials)
    claims = [str(trial_file(tmp_path, trial.hash).with_suffix(".writer")) for trial in trials[:2]]
    other = subprocess.Popen(
        [sys.executable, "-c", code, *claims], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    other.stdout.readline()
    summary = run_trials(trials[:2], tmp_path, 0)
    assert (summary.states, summary.finished, summary.exit_code) == ({"elsewhere": 2}, 0, 0)
    other.kill()
    other.communicate()
    assert run_trials(trials[:1], tmp_path, 0).states == {"ran": 1}
