"""What the transfer report refuses, each in one line."""

import json

import pytest

from mup_lightning.cli.main import main
from mup_lightning.studies.transfer.losses import read_losses
from mup_lightning.studies.transfer.transfer import to_dict, transfer
from tests.studies.tables import COLUMNS, SIZES, curves, write

ROW = ("mup", "width", 64, -7, 0, 3.0)


def published(loss):
    table = {"optimizer": "x", "parametrization": "SP", "axis": "width", "hyperparameter": "lr", "layernorm": True}
    losses = {"64": [loss, 3.0, 3.1], "128": [3.0, 2.9, 3.0]}
    return json.dumps({"tables": {"t": table | {"log2_values": [-8, -7, -6], "validation_loss": losses}}})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--noise", "inf"], "--noise is inf; expected a standard deviation"),
        (["--slope-tolerance", "-1"], "--slope-tolerance is -1.0; expected a number above 0"),
        (["--regret-tolerance", "nan"], "--regret-tolerance is nan; expected a number above 0"),
    ],
)
def test_options_that_make_no_sense(tmp_path, capsys, options, message):
    write(tmp_path / "table.csv", curves(SIZES, (-7, -7, -7, -7)))
    assert main(["report", "transfer", str(tmp_path / "table.csv"), *options]) == 1
    assert message in capsys.readouterr().err


def test_a_file_is_no_folder_for_figures(tmp_path, capsys):
    table = write(tmp_path / "table.csv", curves(SIZES, (-7, -7, -7, -7), noise=0.01, seeds=2))
    assert main(["report", "transfer", str(table), "--out", str(table)]) == 1
    assert "table.csv is not a folder; expected one" in capsys.readouterr().err
    assert main(["report", "transfer", str(table), "--noise", "0.1"]) == 0
    assert "note: --noise holds for groups of one seed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.csv", None, "there is no"),
        ("t.csv", "", "is empty"),
        ("t.txt", "x", "is of an unknown kind; expected a .csv"),
        ("t.csv", "size,loss\n1,2\n", "lacks the columns parametrization, axis, log2_value, seed; expected"),
        ("t.csv", [], "has no runs yet"),
        ("t.csv", "value,log2_value,parametrization,axis,size,seed,loss\neps,,mup,width,64,0,3\n", "at value 0 alone"),
        ("t.csv", [ROW], "has one size only, width 64; transfer is seen between two sizes or more"),
        ("t.csv", [(*ROW[:5], "1e308")], "row 2: loss is '1e308'; expected nats per token"),
        ("t.csv", [("mup", "both", size, -7, 0, 3.0) for size in ("64x4", "128x2")], "has 64x4 and 128x2, which would "
         "be one size: expected models whose width and depth grow together"),
        ("t.csv", ",".join((*COLUMNS, "loss")) + "\n", "has the columns loss more than once"),
        ("t.csv", ",".join(COLUMNS) + '\n"' + "x," * 70000, "is no CSV: field larger than field limit"),
        ("t.csv", [ROW, ("mup", "depth", 4, *ROW[3:])], "has one size only, width 64 and depth 4; transfer"),
        ("t.json", published("three"), "a loss of size 64 is 'three'; expected a number"),
        ("t.csv", [(*ROW[:5], ""), (*ROW[:2], 128, -7, 0, "")], "no run has a loss, all 2 diverged"),
        ("t.csv", [(*ROW[:5], "abc")], "row 2: loss is 'abc'; expected a number"),
        ("t.csv", [("mup", "width", "wide", -7, 0, 3.0)], "row 2: size is 'wide'; expected a number"),
        ("t.csv", [("mup", "width", "-1", -7, 0, 3.0)], "size is '-1'; expected a number above 0"),
        ("t.csv", [("mup", "width", 64, "", 0, 3.0)], "log2_value is ''; expected a number"),
        ("t.csv", [ROW[:4]], "row 2: expected 6 cells"),
        ("t.csv", [ROW, ROW, (*ROW[:2], 128, *ROW[3:])], "has size 64, 2^-7, seed 0 twice"),
        ("t.json", "[1]", "is no table of losses"),
        ("t.json", "{", "is no table of losses"),
    ],
)  # fmt: skip
def test_what_is_no_table_is_refused_in_one_line(tmp_path, capsys, name, content, message):
    path = tmp_path / name
    if isinstance(content, str):
        path.write_text(content)
    elif content is not None:
        write(path, content)
    assert main(["report", "transfer", str(path)]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("corpus", ("aaa", "bbb"), "mixes corpora (manifests aaa and bbb)"),
        ("steps", (60, 80), "mixes runs of 60 and 80 steps"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, capsys, column, values, message):
    rows = [(*row, values[row[2] == 512]) for row in curves(SIZES, (-7,) * 4)]
    path = write(tmp_path / "t.csv", rows, (*COLUMNS, column))
    assert main(["report", "transfer", str(path)]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("column", "values", "message", "own"),
    [
        ("corpus", ("aaa", "bbb"), "have different corpora (SP: aaa, recipe: bbb)", "data.path"),
        ("steps", (60, 80), "have different numbers of steps (SP: 60, recipe: 80)", "trainer.max_steps"),
    ],
)
def test_parametrizations_are_compared_on_equal_terms(tmp_path, capsys, column, values, message, own):
    rows = [(*row, value) for name, value in zip(("sp", "mup"), values, strict=True)
            for row in curves((64, 128), (-7, -7), name=name)]  # fmt: skip
    path = write(tmp_path / "t.csv", rows, (*COLUMNS, column))
    assert main(["report", "transfer", str(path)]) == 1
    assert message in (error := capsys.readouterr().err)
    assert f"or add the column {own}" in error
    # A column that tells them apart: two experiments, each compared with itself alone.
    apart = write(tmp_path / "apart.csv", [(*row, row[-1]) for row in rows], (*COLUMNS, column, own))
    found = to_dict(transfer(read_losses(apart)))
    assert (len(found["groups"]), found["comparisons"]) == (2, [])


def test_the_column_that_tells_all_sizes_apart_is_named(tmp_path, capsys):
    rows = [(*row, row[2] // 32, 128) for row in curves(SIZES, (-7,) * 4)]
    path = write(tmp_path / "t.csv", rows, (*COLUMNS, "model.heads", "model.context"))
    assert main(["report", "transfer", str(path)]) == 1
    assert capsys.readouterr().err.endswith(
        "has the sizes 64, 128, 256, 512, but no two of them in one group, for runs whose columns differ are not "
        "compared: model.heads, which differ with the size; give these one value, or leave out the column\n"
    )


def test_tables_as_other_programs_write_them(tmp_path, capsys):
    """Whole numbers with a point, flags in words, a size in two spellings, diverged runs as nan."""
    spelt = {64: "6.4e1", 128: " 128.00"}
    rows = [
        (name, "width", spelt[row[2]] if name == "sp" else row[2], *row[3:5], "nan" if row[3] > -5 else row[5],
         "400.0", "False")
        for name in ("sp", "mup") for row in curves((64, 128), (-7, -7))
    ]  # fmt: skip
    path = write(tmp_path / "t.csv", rows, (*COLUMNS, "steps", "stopped"))
    assert main(["report", "transfer", str(path), "--json", "--out", str(tmp_path / "out")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [group["steps"] for group in found["groups"]] == [400, 400]
    assert set(found["groups"][0]["diverged"]) == {"64", "128"}
    assert found["comparisons"][0]["best_loss"]["64"] == {"SP": 3.0, "recipe": 3.0}
    assert main(["report", "transfer", str(path)]) == 0
    assert {curve.lost[-4.0] for found in transfer(read_losses(path)) for curve in found.curves} == {"diverged"}


def test_a_family_of_which_nothing_trained_is_drawn_empty(tmp_path, capsys):
    rows = [(*row, "adamw") for row in curves((64, 128), (-7, -7))]
    rows += [(*row[:5], "", "sgd") for row in rows]
    path = write(tmp_path / "t.csv", rows, (*COLUMNS, "optimizer"))
    assert main(["report", "transfer", str(path), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "transfer_width-sgd.png").stat().st_size > 1000
    assert "every value that was tried diverged" in capsys.readouterr().out


def test_a_nan_in_the_published_tables_is_a_divergence(tmp_path):
    (tmp_path / "t.json").write_text(published(float("nan")))
    (group,) = to_dict(transfer(read_losses(tmp_path / "t.json")))["groups"]
    assert group["diverged"] == {"64": [-8.0]}


def test_a_row_without_an_end_is_left_out_aloud(tmp_path, capsys):
    rows = [(*row, f"h{n}") for n, row in enumerate(curves((64, 128), (-7, -7)))]
    path = write(tmp_path / "t.csv", rows, (*COLUMNS, "config_hash"))
    path.write_text(path.read_text()[:-2])
    assert main(["report", "transfer", str(path)]) == 0
    assert "the last row is left out: no end of line" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, capsys):
    path = write(tmp_path / "t.csv", curves((64, 128), (-7, -7)))
    assert main(["report", "transfer", str(path), "--out", str(path / "out")]) == 1
    wanted = f"error: {path} is not a folder; expected one, or a name for a new one (--out)\n"
    assert capsys.readouterr().err == wanted


def test_a_power_of_two_that_no_number_has_is_refused(tmp_path, capsys):
    (tmp_path / "table.csv").write_text("\n".join([",".join(COLUMNS), "mup,width,64,1e300,0,3.0", ""]))
    assert main(["report", "transfer", str(tmp_path / "table.csv")]) == 1
    assert "log2_value is '1e300'; expected a power of two, such as -7" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["report", "best", "X"], ["report", "transfer", "X"], ["support"]])
def test_one_form_at_a_time(argv, capsys):
    with pytest.raises(SystemExit):
        main([*argv, "--json", "--markdown"])
    assert "not allowed with argument" in capsys.readouterr().err
