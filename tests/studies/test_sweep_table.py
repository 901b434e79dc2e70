"""The table: whole rows, several writers, claims that die with their holder; and estimates of time."""

import csv
import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest

from mup_lightning import files as user_files
from mup_lightning.cli.main import main
from mup_lightning.cli.sweep import compose
from mup_lightning.errors import UserError
from mup_lightning.studies.sweep.grid import expand
from mup_lightning.studies.sweep.locks import Locks
from mup_lightning.studies.sweep.progress import Estimate
from mup_lightning.studies.sweep.run import SweepRun
from mup_lightning.studies.sweep.spec import EarlyStop, load
from mup_lightning.studies.sweep.table import Outcome, Table
from tests.studies.sweeps import tiny_sweep, write

DONE = Outcome(loss=2.5, train_loss=2.25, steps=60, parameters=1000, seconds=2.0, tokens_per_second=3840.0)


@pytest.fixture
def cells(corpus, tmp_path):
    grids = [{"vary": {"model.width": [16, 32]}}, {"vary": {"model.depth": [1, 2]}}]
    vary = {"recipe.lr": {"log2": [-8]}, "seed": [0, 1]}
    return expand(load(write(tmp_path / "file", tiny_sweep(corpus, grids=grids, vary=vary))), compose)


def test_rows_are_tidy(cells, tmp_path):
    table = Table(tmp_path, Locks(tmp_path), list(cells[0].varied))
    for cell in cells:
        table.append(cell, DONE)
    rows = list(csv.DictReader(table.path.open()))
    assert len({row["config_hash"] for row in rows}) == len(cells) == 6
    found = sorted((row["axis"], int(row["size"]), int(row["seed"])) for row in rows)
    assert found == [(axis, size, seed) for axis, sizes in (("depth", (1, 2)), ("width", (16, 32))) for size in sizes
                     for seed in (0, 1)]  # fmt: skip
    row = rows[0]
    wanted = {
        "parametrization": "mup",
        "optimizer": "adamw",
        "branch_depth": "2",
        "value": "recipe.lr",
        "log2_value": "-8.0",
        "loss": "2.5",
        "tokens": str(60 * 8 * 16),
        "diverged": "",
        "stopped": "",
        "corpus": cells[0].corpus,
    }
    assert {key: row[key] for key in wanted} == wanted
    assert float(row["unigram_loss"]) == cells[0].unigram_loss


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "results.csv",
            b"config_hash,corpus,loss\nabc,def\n",
            "is damaged: row 2 has not as many cells as the heading; del",
        ),
        (
            "results.csv",
            b"config_hash\nab,c\n",
            "is damaged: row 2 has not as many cells as the heading; delete the row",
        ),
        ("results.csv", b"\xff\xfe\x00\n", "is damaged: 'utf-8' codec can't decode"),
        ("configurations.json", b"{", "is damaged: Expecting"),
        ("configurations.json", b"[]", "is no record of a sweep; move it away"),
        ("failures.json", b"{", "is damaged: Expecting"),
    ],
)
def test_a_damaged_folder_is_one_line(corpus, tmp_path, capsys, name, content, message):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_bytes(content)
    assert main(["sweep", str(write(tmp_path, tiny_sweep(corpus))), "--out", str(tmp_path / "out")]) == 1
    assert f"error: {tmp_path / 'out' / name} {message}" in capsys.readouterr().err
    assert (tmp_path / "out" / name).read_bytes() == content


def test_a_folder_that_cannot_be_made_is_one_line(corpus, tmp_path, capsys):
    assert main(["sweep", str(write(tmp_path, tiny_sweep(corpus))), "--out", "/proc/nowhere"]) == 1
    assert capsys.readouterr().err.startswith(
        "error: /proc/nowhere cannot be made: No such file or directory; name anoth"
    )


@pytest.mark.parametrize("name", ["file", "file/below/it", "link"])
def test_a_dry_run_says_the_same_of_the_folder(corpus, tmp_path, capsys, name):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    arguments = ["sweep", str(write(tmp_path, tiny_sweep(corpus))), "--out", str(tmp_path / name)]
    told = []
    for more in ([], ["--dry-run"]):
        assert main([*arguments, *more]) == 1
        told.append(capsys.readouterr().err)
    assert told[0] == told[1]
    assert told[0].startswith(
        f"error: {tmp_path / name.partition('/')[0]} is not a folder; expected one, or a name for "
    )
    assert (tmp_path / "file").stat().st_size == 0
    assert not (tmp_path / "nowhere").exists()


def test_a_dry_run_knows_where_nobody_may_write(tmp_path, monkeypatch):
    monkeypatch.setattr(user_files.os, "access", lambda path, mode: path != tmp_path)
    (tmp_path / "mine").mkdir()
    user_files.check_folder(tmp_path / "mine" / "out")
    with pytest.raises(UserError, match="nothing may be written into"):
        user_files.check_folder(tmp_path / "out")


def test_a_torn_row_is_no_row_and_is_cut_off(cells, tmp_path):
    table = Table(tmp_path, Locks(tmp_path), list(cells[0].varied))
    table.append(cells[0], DONE)
    whole = table.path.read_bytes()
    table.path.write_bytes(whole + whole.splitlines()[-1][:40])
    assert [row["config_hash"] for row in table.rows()] == [cells[0].hash] * len(cells[0].axes)
    table.append(cells[1], DONE)
    assert table.path.read_bytes().startswith(whole)
    assert {row["config_hash"] for row in table.rows()} == {cells[0].hash, cells[1].hash}


def test_a_key_that_varies_later_gets_its_column(cells, tmp_path):
    Table(tmp_path, Locks(tmp_path), []).append(replace(cells[0], varied={}), DONE)
    later = Table(tmp_path, Locks(tmp_path), list(cells[1].varied))
    later.append(cells[1], DONE)
    by_hash = {row["config_hash"]: row["model.width"] for row in later.rows()}
    assert by_hash == {cells[0].hash: "", cells[1].hash: str(cells[1].config.model.width)}


def test_what_is_done_on_one_axis_gets_its_row_on_the_next(corpus, tmp_path):
    """A width grid first, then a depth grid, then another swept value: the shared base stands in all."""
    width, depth = {"vary": {"model.width": [16, 32]}}, {"vary": {"model.depth": [1, 2]}}
    vary, out = {"recipe.lr": {"log2": [-8]}, "seed": [0, 1]}, tmp_path / "out"

    def cells_of(*grids, **changes):
        return expand(load(write(tmp_path, tiny_sweep(corpus, grids=list(grids), vary=vary, **changes))), compose)

    first = cells_of(width)
    table = Table(out, Locks(out), list(first[0].varied))
    for cell in first:
        table.append(cell, DONE)
    both = cells_of(width, depth)
    assert SweepRun(both, out, workers=1).summary.before == len(first)
    later = Table(out, Locks(out), list(both[0].varied))
    for cell in both:
        if cell.config.model.depth == 2:
            later.append(cell, DONE)
    SweepRun(both, out, workers=1).run()  # nothing is left to run
    rows = later.rows()
    found = sorted((row["axis"], row["size"], row["seed"]) for row in rows)
    assert found == [(axis, size, seed) for axis, sizes in (("depth", "12"), ("width", ("16", "32"))) for size in sizes
                     for seed in "01"]  # fmt: skip
    assert {row["model.depth"] for row in rows} == {"1", "2"}  # a column of the second grid's, filled for the first too
    assert {(row["loss"], row["train_loss"], row["steps"], row["stopped"]) for row in rows} == {
        ("2.5", "2.25", "60", "")
    }
    before = later.path.read_bytes()
    SweepRun(both, out, workers=1).run()
    assert later.path.read_bytes() == before
    SweepRun(cells_of(width, depth, value="recipe.init_std"), out, workers=1).run()
    assert len(later.rows()) == 2 * len(rows)
    assert later.path.read_bytes().startswith(before)
    (row,) = {(r["value"], r["log2_value"]) for r in later.rows()[len(rows) :]}
    assert row == ("recipe.init_std", str(math.log2(first[0].config.recipe.init_std)))


def test_value_zero_has_no_logarithm(corpus, tmp_path):
    content = tiny_sweep(corpus, value="recipe.weight_decay", vary={"recipe.weight_decay": [0, 0.25]})
    cells = expand(load(write(tmp_path, content)), compose)
    table = Table(tmp_path, Locks(tmp_path), list(cells[0].varied))
    for cell in cells:
        table.append(cell, DONE)
    assert {(row["recipe.weight_decay"], row["log2_value"]) for row in table.rows()} == {("0.0", ""), ("0.25", "-2.0")}


def test_a_shard_is_judged_and_checked_by_the_whole_sweep(cells, tmp_path):
    mine, theirs = cells[0], next(cell for cell in cells[1:] if cell.peers == cells[0].peers)
    other = replace(theirs, corpus="0" * 64, hash="f" * 64)  # of a sweep over two corpora
    run = SweepRun([mine], tmp_path, workers=1, early_stop=EarlyStop(20, 1.0), sweep=[mine, theirs, other])
    table = Table(tmp_path, Locks(tmp_path), list(mine.varied))
    table.append(other, DONE)
    assert SweepRun([mine], tmp_path, workers=1, sweep=[mine, other]).summary.before == 0  # not refused
    assert run.judge.limit(mine)[1] == mine.unigram_loss + 1
    table.append(theirs, replace(DONE, early_loss=0.5))  # by another shard, meanwhile
    assert run._next() is mine
    assert run.judge.limit(mine)[1] == 1.5


def child(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_a_claim_holds_between_processes_and_dies_with_its_holder(cells, tmp_path):
    code = (
        "import sys; from pathlib import Path; from mup_lightning.studies.sweep.locks import Locks\n"
        "locks = Locks(Path(sys.argv[1]))\n"
        "print(all([locks.claim(name) for name in sys.argv[2:]]), flush=True); sys.stdin.read()\n"
    )
    other = child(code, tmp_path, *[cell.hash for cell in cells])
    assert other.stdout.readline() == "True\n"
    locks = Locks(tmp_path)
    assert not locks.claim(cells[0].hash)
    assert locks.claim("0" * 64)
    summary = SweepRun(cells, tmp_path, workers=1).run()  # starts no worker: all is being run elsewhere
    assert (summary.elsewhere, summary.ran, summary.before) == (len(cells), 0, 0)
    other.kill()
    other.communicate()
    assert locks.claim(cells[0].hash)


def test_rows_of_several_writers_do_not_mix(cells, tmp_path):
    code = (
        "import sys; from pathlib import Path\n"
        "from mup_lightning.studies.sweep.locks import Locks\n"
        "from mup_lightning.studies.sweep.records import Record\n"
        "folder, name = Path(sys.argv[1]), sys.argv[2]\n"
        "record = Record(folder, 'r.json', Locks(folder))\n"
        "for n in range(100): record.change({f'{name}{n}': n})\n"
    )
    writers = [child(code, tmp_path, name) for name in "ab"]
    table = Table(tmp_path, Locks(tmp_path), list(cells[0].varied))
    for _ in range(100):
        table.append(cells[0], DONE)
    assert [writer.wait(60) for writer in writers] == [0, 0]
    assert len(json.loads((tmp_path / "r.json").read_text())) == 200


def test_one_table_one_corpus(cells, tmp_path):
    Table(tmp_path, Locks(tmp_path), list(cells[0].varied)).append(replace(cells[0], corpus="0" * 64), DONE)
    with pytest.raises(UserError, match=r"results\.csv has rows of another corpus \(manifest 000000000000"):
        SweepRun(cells, tmp_path)
    (tmp_path / "results.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="no column config_hash"):
        SweepRun(cells, tmp_path)


def test_rows_of_another_sweep_are_pointed_out(corpus, tmp_path, capsys):
    file = write(tmp_path / "file", tiny_sweep(corpus))
    for value in (0, 1):
        cells = expand(load(file, {"recipe.weight_decay": value}), compose)
        table = Table(tmp_path / "out", Locks(tmp_path / "out"), list(cells[0].varied))
        for cell in cells:
            table.append(cell, DONE)
    arguments = ["sweep", str(file), "--out", str(tmp_path / "out"), "--set", "recipe.weight_decay=1"]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert "4 configurations, 4 of them done already" in printed.out
    assert "also has 4 configurations that are not in this sweep" in printed.err
    assert main([*arguments, "--shard", "2/4"]) == 0
    assert "1 configurations, 1 of them done already" in capsys.readouterr().out


def test_a_worker_reads_its_environment_before_torch():
    modules = "worker pool run table grid spec locks progress early records".split()
    imports = ", ".join(f"mup_lightning.studies.sweep.{module}" for module in modules)
    process = child(f"import sys; import {imports}; print('torch' in sys.modules or 'lightning' in sys.modules)")
    assert process.communicate()[0] == "False\n"


def test_time_left_is_the_longest_first_on_the_worker_that_is_free_first(cells):
    estimate = Estimate(cells, [])
    times = [8.0, 5.0, 4.0, 3.0]
    for seconds in times:
        estimate._kinds[("adamw", seconds)] = [seconds]
    costed = [replace(cell, work=seconds) for cell, seconds in zip(cells, times, strict=False)]
    assert estimate.remaining(costed, [], 2) == 11.0  # 8 + 3 beside 5 + 4
    assert estimate.remaining([], [], 2) == 0.0


def test_estimates_come_from_the_table(cells, tmp_path):
    table = Table(tmp_path, Locks(tmp_path), list(cells[0].varied))
    table.append(cells[0], DONE)
    table.append(cells[-1], replace(DONE, loss=None, diverged="step 1", seconds=1e6))
    estimate = Estimate(cells, table.rows())
    assert estimate.measured == 1
    assert estimate.seconds(cells[0]) == 2.0
    other = next(cell for cell in cells if cell.work != cells[0].work)
    assert estimate.seconds(other) == pytest.approx(2.0 * other.work / cells[0].work)
