"""The folder of a sweep: files of trials, the table made of them, tables of earlier versions, and claims."""

import csv
import json
import math
import re
import subprocess
import sys

import pytest

from mup_lightning import files
from mup_lightning.cli.main import main
from mup_lightning.errors import UserError
from mup_lightning.studies.sweep.grid import expand
from mup_lightning.studies.sweep.run import dry_run, run_trials
from mup_lightning.studies.sweep.spec import load
from mup_lightning.studies.sweep.table import COLUMNS, measured, prepare, read_trials, rows_of, trial_file, write_table
from tests.studies.sweeps import tiny_sweep, write

WIDTH, DEPTH = {"vary": {"model.width": [16, 32]}}, {"vary": {"model.depth": [1, 2]}}
DONE = {"loss": 2.5, "train_loss": 2.25, "steps": 60, "seconds": 2.0, "tokens_per_second": 3840.0, "diverged": ""}
EARLIER = """parametrization,optimizer,branch_depth,width,depth,axis,size,value,log2_value,seed,loss,train_loss,\
unigram_loss,steps,tokens,parameters,seconds,tokens_per_second,diverged,stopped,early_loss,corpus,config_hash,recipe.lr
"""


def trials_of(corpus, tmp_path, *grids, **changes):
    vary = {"recipe.lr": {"log2": [-8]}, "seed": [0, 1]}
    return expand(load(write(tmp_path / "file", tiny_sweep(corpus, grids=list(grids), **({"vary": vary} | changes)))))


@pytest.fixture
def trials(corpus, tmp_path):
    return trials_of(corpus, tmp_path, WIDTH, DEPTH)


def finish(folder, trials, **result):
    """Write files as if the trials had been run."""
    prepare(folder, trials)
    for trial in trials:
        rows = rows_of(trial, measured(trial, **(DONE | result)))
        files.write_json(trial_file(folder, trial.hash), {"config": None, "rows": rows})
    write_table(folder)


def table(folder):
    return list(csv.DictReader((folder / "results.csv").open()))


def test_rows_are_tidy(trials, tmp_path):
    finish(tmp_path, trials)
    rows = table(tmp_path)
    assert list(rows[0])[: len(COLUMNS)] == COLUMNS
    assert list(rows[0])[len(COLUMNS) :] == ["recipe.lr", "model.width", "model.depth"]
    assert len({row["config_hash"] for row in rows}) == len(trials) == 6
    found = [(row["axis"], int(row["size"]), int(row["seed"])) for row in rows]
    assert found == [(axis, size, seed) for axis, sizes in (("depth", (1, 2)), ("width", (16, 32))) for size in sizes
                     for seed in (0, 1)]  # fmt: skip
    wanted = {
        "parametrization": "mup", "optimizer": "adamw", "branch_depth": "2", "value": "recipe.lr", "log2_value": "-8.0",
        "loss": "2.5", "tokens": str(60 * 8 * 16), "diverged": "", "stopped": "", "recipe.lr": "0.00390625",
        "corpus": trials[0].checked.corpus, "unigram_loss": repr(trials[0].checked.unigram_loss),
    }  # fmt: skip
    assert {key: rows[0][key] for key in wanted} == wanted
    for trial in trials[3:]:
        trial_file(tmp_path, trial.hash).unlink()
    printed = dry_run(trials, tmp_path, 1)
    assert "6 configurations, 3 left: 23,040 tokens, " in printed
    assert "1 would run at once (as 3 finished ones took)" in printed


def test_what_is_finished_on_one_axis_gets_its_rows_on_the_next(corpus, tmp_path):
    """A width grid first, then a depth grid, then another swept value: the shared base is in all."""
    out = tmp_path / "out"
    first, both = trials_of(corpus, tmp_path, WIDTH), trials_of(corpus, tmp_path, WIDTH, DEPTH)
    finish(out, first)
    assert prepare(out, both) == {trial.hash for trial in first}
    finish(out, [trial for trial in both if trial.config.model.depth == 2])
    assert run_trials(both, out, 1).finished == len(both)  # nothing is left to run
    rows = table(out)
    assert sorted((row["axis"], row["size"], row["seed"]) for row in rows) == [
        (axis, size, seed) for axis, sizes in (("depth", "12"), ("width", ("16", "32"))) for size in sizes
        for seed in "01"
    ]  # fmt: skip
    assert {row["model.depth"] for row in rows} == {"1", "2"}  # a column of the second grid's, filled for the first too
    assert {(row["loss"], row["train_loss"], row["steps"]) for row in rows} == {("2.5", "2.25", "60")}
    before = (out / "results.csv").read_bytes()
    prepare(out, both)
    assert (out / "results.csv").read_bytes() == before
    prepare(out, trials_of(corpus, tmp_path, WIDTH, DEPTH, value="recipe.init_std"))
    added = [row for row in table(out) if row["value"] == "recipe.init_std"]
    assert len(added) == len(rows) == len(table(out)) - len(added)
    assert {float(row["log2_value"]) for row in added} == {math.log2(first[0].config.recipe.init_std)}


def test_value_zero_has_no_logarithm(corpus, tmp_path):
    vary = {"recipe.weight_decay": [0, 0.25]}
    finish(tmp_path, trials_of(corpus, tmp_path, {}, value="recipe.weight_decay", vary=vary))
    assert {(row["recipe.weight_decay"], row["log2_value"]) for row in table(tmp_path)} == {
        ("0.0", ""),
        ("0.25", "-2.0"),
    }


def test_the_table_of_an_earlier_version_is_honoured(corpus, tmp_path):
    """Its runs are not repeated, its cells stay as they are, and a row that lacks its end does not count."""
    trials = trials_of(corpus, tmp_path, {"vary": {"seed": [0, 1, 2]}})
    out = tmp_path / "out"
    out.mkdir()
    row = "mup,adamw,2,16,1,width,16,recipe.lr,-8.0,{},2.50,2.250,3.1,60,7680,1000,2.000,3840.0,,{},9.5,{},{},0.0039\n"
    corpus_hash = trials[0].checked.corpus
    lines = [
        row.format(t.config.seed, why, corpus_hash, t.hash) for t, why in zip(trials, ("", "hopeless", ""), strict=True)
    ]
    (out / "results.csv").write_text(EARLIER + "".join(lines)[:-30])
    saved = {trials[0].hash: {"model": {"width": 16}}}
    (out / "configurations.json").write_text(json.dumps(saved))
    assert len(read_trials(out)) == 2
    assert not (out / "trials").exists()  # looking at it changes nothing
    assert prepare(out, trials) == {trial.hash for trial in trials[:2]}
    assert sorted((out / "results.csv").read_text().splitlines()) == sorted((EARLIER + "".join(lines[:2])).splitlines())
    assert read_trials(out)[trials[0].hash]["config"] == {"model": {"width": 16}}
    (out / "trials" / f"{trials[0].hash}.json").unlink()  # to run it again
    assert prepare(out, trials) == {trials[1].hash}
    assert len(table(out)) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "results.csv",
            b"config_hash,corpus,loss\nabc,def\n",
            "has rows without a config_hash, or of another length than the heading",
        ),
        (
            "results.csv",
            b"a,b\n1,2\n",
            "has rows without a config_hash, or of another length than the heading; choose an",
        ),
        ("results.csv", b"config_hash\nab,c\n", "has rows without a config_hash, or of another length"),
        ("results.csv", b"\xff\xfe\x00\n", "is not the results.csv of a sweep ('utf-8' codec can't decode"),
        ("configurations.json", b"{", "is damaged: Expecting"),
        ("trials/abc.json", b"{", "is damaged: Expecting property name enclosed in double quotes: line 1 column 2"),
    ],
)
def test_a_damaged_folder_is_one_line(trials, tmp_path, capsys, name, content, message):
    out = tmp_path / "out"
    (out / name).parent.mkdir(parents=True)
    (out / "results.csv").write_text(EARLIER)
    (out / name).write_bytes(content)
    assert main(["sweep", str(tmp_path / "file" / "sweep.yaml"), "--out", str(out)]) == 1
    assert f"error: {out / name} {message}" in capsys.readouterr().err
    assert (out / name).read_bytes() == content


@pytest.mark.parametrize("name", ["plain", "plain/below/it", "link"])
def test_a_dry_run_says_the_same_of_the_folder(trials, tmp_path, capsys, name):
    (tmp_path / "plain").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    arguments = ["sweep", str(tmp_path / "file" / "sweep.yaml"), "--out", str(tmp_path / name)]
    for more in ([], ["--dry-run"]):
        assert main([*arguments, *more]) == 1
        assert re.match(rf"error: {tmp_path}/(plain|link) is not a folder; expected one", capsys.readouterr().err)
    assert not (tmp_path / "nowhere").exists()


def test_one_table_one_corpus(trials, tmp_path):
    finish(tmp_path, trials, corpus="0" * 64)
    with pytest.raises(UserError, match=r"has results on another corpus \(manifest 000000000000, this sweep reads"):
        prepare(tmp_path, trials)


def test_results_of_another_sweep_are_pointed_out_and_a_shard_is_not_one(corpus, tmp_path, capsys):
    file, out = write(tmp_path / "file", tiny_sweep(corpus)), tmp_path / "out"
    for value in (0, 1):
        finish(out, expand(load(file, {"recipe.weight_decay": value})))
    arguments = ["sweep", str(file), "--out", str(out), "--set", "recipe.weight_decay=1"]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert "4 configurations, 4 of them finished before" in printed.out
    assert "also has 4 configurations that are not in this sweep" in printed.err
    assert main([*arguments, "--shard", "2/4"]) == 0
    assert "1 configurations, 1 of them finished before" in capsys.readouterr().out


def test_a_claim_holds_between_processes_and_dies_with_its_holder(trials, tmp_path):
    code = (
        "import sys; from filelock import FileLock\n"
        "locks = [FileLock(name) for name in sys.argv[1:]]\n"
        "for lock in locks: lock.acquire(blocking=False)\n"
        "print(flush=True); sys.stdin.read()\n"
    )
    prepare(tmp_path, trials)
    claims = [str(trial_file(tmp_path, trial.hash).with_suffix(".lock")) for trial in trials[:2]]
    other = subprocess.Popen(
        [sys.executable, "-c", code, *claims], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    other.stdout.readline()
    summary = run_trials(trials[:2], tmp_path, 0)
    assert (summary.states, summary.finished, summary.exit_code) == ({"elsewhere": 2}, 0, 0)
    other.kill()
    other.communicate()
    assert run_trials(trials[:1], tmp_path, 0).states == {"ran": 1}
