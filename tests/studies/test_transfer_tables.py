"""Tables that the transfer report reads, however they were written, and what it refuses, each in one line."""

import pytest

from mup_lightning.cli.main import main
from mup_lightning.errors import UserError
from mup_lightning.studies.transfer.losses import read_losses
from mup_lightning.studies.transfer.report import to_dict
from mup_lightning.studies.transfer.verdict import transfer
from tests.studies.tables import COLUMNS, SAVED, SIZES, curves, judged, write

ROW = ("mup", "width", 64, -7, 0, 3.0)
HEAD = ",".join(COLUMNS) + "\n"
TWO = curves((64, 128), (-7, -7))


def refusal(capsys, *words):
    """What `report transfer` says of a table that it refuses, in one line."""
    assert main(["report", "transfer", *map(str, words)]) == 1
    (error,) = capsys.readouterr().err.splitlines()
    return error


def test_options_that_make_no_sense(tmp_path, capsys):
    path = write(tmp_path / "t.csv", TWO)
    assert "--noise is inf; expected a finite number of at least 0" in refusal(capsys, path, "--noise", "inf")
    assert "are two forms of the same report; choose one" in refusal(capsys, path, "--json", "--markdown")
    assert "t.csv is not a folder; expected one, or a name for" in refusal(capsys, path, "--out", path / "out")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read as CSV: No such file or directory; expected the results.csv of a sweep"),
        (b"\xe9\n", "cannot be read as CSV: 'utf-8' codec can't decode"),
        ("size,loss\n1,2\n", "lacks the columns parametrization, axis, log2_value, seed, or has them twice"),
        (",".join((*COLUMNS, "loss")) + "\n", "lacks the columns loss, or has them twice"),
        (HEAD.replace(",", ";") + "mup;width;64;-7;0;3,1\nmup;width;128;-7.0;0;3,2\n", "loss is '3,1'; exp"),
        (HEAD.strip() + ",,\nmup,width,64,-7,0,3.0,,9\n", "row 2: expected 6 cells as in the heading"),
        (HEAD + '"mup,width,64,-7,0,3.0\n', "cannot be read as CSV: unexpected end of data"),
        ([], "has no runs yet, only a heading"),
        (HEAD + "\nmup,width,64,-7,0,3\nmup,width,128,-7,0", "row 4: expected 6 cells"),
        ("value,log2_value,parametrization,axis,size,seed,loss\neps,,mup,width,64,0,3\n", "has only runs at "
         "value 0"),
        ([(*ROW[:5], "abc")], "row 2: loss is 'abc'; expected nats per token"),
        ([(*ROW[:5], "1e308")], "row 2: loss is '1e308'; expected nats per token"),
        ([(*ROW[:3], "", 0, 3.0)], "log2_value is ''; expected a power of two"),
        ([("mup", "width", "-1", -7, 0, 3.0)], "row 2: size is '-1'; expected a number above 0"),
        ([ROW, ("mup", "depth", 4, *ROW[3:])], "no group has two sizes, which transfer is seen between: "),
        ([("mup", "both", size, -7, 0, 3.0) for size in ("64x4", "128x2")], "64x4 and 128x2 would be one "
         "size: expected models whose width and depth grow together"),
        ([(*ROW[:5], ""), (*ROW[:2], 128, -7, 0, "")], "no run has a loss, all 2 diverged"),
        ([ROW, ROW, (*ROW[:2], 128, *ROW[3:])], "row 3 has size 64, 2^-7, seed 0 again (before: "),
    ],
)  # fmt: skip
def test_what_is_no_table_is_refused_in_one_line(tmp_path, capsys, content, message):
    path = tmp_path / "t.csv"
    if isinstance(content, str | bytes):
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    elif content is not None:
        write(path, content)
    assert message in refusal(capsys, path)


@pytest.mark.parametrize(("column", "values"), [("corpus", ("aaa", "bbb")), ("steps", (60, 80))])
def test_losses_are_compared_on_equal_terms(tmp_path, capsys, column, values):
    """Between the parametrizations of a family, and within a group."""
    rows = [(*row, value) for name, value in zip(("sp", "mup"), values, strict=True)
            for row in curves((64, 128), (-7, -7), name=name)]  # fmt: skip
    mixed = [(*row, values[row[2] == 512]) for row in curves(SIZES, (-7,) * 4, name="sp")]
    for own in (rows, mixed):
        error = refusal(capsys, write(tmp_path / "t.csv", own, (*COLUMNS, column)))
        assert f"differ in {column} ({values[0]} and {values[1]})" in error
        assert "add a column of the option behind it" in error
    # With such a column they are two experiments, each compared with itself alone.
    found = to_dict(judged(tmp_path, [(*row, row[-1]) for row in rows], (*COLUMNS, column, "data.path")))
    assert (len(found["groups"]), found["comparisons"]) == (2, [])


def test_what_columns_show_or_do_not_is_said(tmp_path, capsys):
    rows = [(*row, "a") for row in TWO]
    path = write(tmp_path / "t.csv", [*rows, (*rows[0][:-1], "b")], (*COLUMNS, "config_hash"))
    assert ", of another configuration, which no column shows; keep one of the two rows" in refusal(capsys, path)
    rows = [(*row, row[2] // 32, 128) for row in curves(SIZES, (-7,) * 4)]
    path = write(tmp_path / "t.csv", rows, (*COLUMNS, "model.heads", "model.context"))
    wanted = "there are width 64, 128, 256, 512; runs that differ in model.heads are not compared"
    assert refusal(capsys, path).endswith(wanted)


@pytest.mark.parametrize("form", ["plain", "pandas", *SAVED])
def test_tables_as_other_programs_write_them(tmp_path, form):
    """Whole numbers with a point, a size in two spellings, nan, and what spreadsheets do."""
    spelt = {64: "6.4e1", 128: " 128.00"} if form != "plain" else {64: "64", 128: "128"}
    lost = "" if form == "plain" else "nan"
    rows = [
        (name, "width", spelt[row[2]] if name == "sp" else row[2], *row[3:5], lost if row[3] > -5 else row[5],
         "400.0", 1 if name == "mup" else "")
        for name in ("sp", "mup") for row in TWO
    ]  # fmt: skip
    path = write(tmp_path / "t.csv", rows, (*COLUMNS, "steps", "branch_depth"))
    if form in SAVED:
        path.write_bytes(SAVED[form](path.read_text()))
    elif form == "pandas":
        import pandas as pd

        pd.read_csv(path).to_csv(path, index=False)
    groups, comparisons = to_dict(transfer(read_losses(path))).values()
    assert [(group["sizes"], group["steps"]) for group in groups] == [(["64", "128"], 400)] * 2
    assert groups[0]["diverged"] == {"64": [-4.0], "128": [-4.0]}
    assert comparisons[0]["best_loss"]["64"] == {"SP": 3.0, "recipe, k = 1": 3.0}


def test_what_is_left_out_is_said(tmp_path, capsys):
    rows = [(*row, "eps") for row in curves((64, 128), (-7, -7), noise=0.01, seeds=2)]
    path = write(tmp_path / "t.csv", [*rows, (*ROW[:3], "", 0, 1.0, "eps")], (*COLUMNS, "value"))
    assert len(read_losses(path)) == len(rows)
    assert "note: runs left out at value 0, which has no logarithm: 1" in capsys.readouterr().err
    assert main(["report", "transfer", str(path), "--noise", "0.1"]) == 0
    assert "note: --noise holds for groups of one seed" in capsys.readouterr().err


def test_a_family_of_which_nothing_trained_is_drawn_empty(tmp_path, capsys):
    rows = [(*row, "adamw") for row in TWO]
    rows += [(*row[:5], "", "sgd") for row in rows]
    path = write(tmp_path / "t.csv", rows, (*COLUMNS, "optimizer"))
    assert main(["report", "transfer", str(path), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "transfer_width-sgd.png").stat().st_size > 1000
    assert "every value that was tried diverged" in capsys.readouterr().out


def over_time(batches=((1024, 800), (2048, 400), (4096, 200))):
    """Rows over the tokens at one batch, and over the batch with as many tokens each, at two widths."""
    head = (*COLUMNS, "width", "steps", "data.batch_size", "trainer.max_steps")
    rows = []
    for width in (64, 128):
        for row in curves((409600, 819200, 1638400), (-7, -7.5, -8), noise=0.001, seeds=2):
            rows.append((row[0], "tokens", *row[2:], width, row[2] // 2048, 16, row[2] // 2048))
        for row in curves([size for size, _ in batches], (-8, -7.5, -7), noise=0.001, seeds=2):
            steps = dict(batches)[row[2]]
            rows.append((row[0], "batch", *row[2:], width, steps, row[2] // 128, steps))
    return rows, head


def test_lengths_and_batches_are_compared(tmp_path):
    """Over the tokens the steps differ by nature, and over the batch too, where all runs see as many tokens."""
    found = judged(tmp_path, *over_time())
    both = [("tokens", None, None), ("batch", "819200", None)]
    assert [(one.axis, one.settings.get("tokens"), one.steps) for one in found] == both * 2
    assert [one.slope.slope for one in found] == pytest.approx([-0.5, 0.5] * 2, abs=0.05)
    rows, head = over_time(((1024, 800), (2048, 400), (4096, 100)))
    kept = [row[:-2] for row in rows if row[1] == "batch"]  # no column tells the unequal ones apart
    with pytest.raises(UserError, match="runs that are compared differ in tokens"):
        judged(tmp_path, kept, head[:-2])
