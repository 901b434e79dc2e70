"""The best value of each group of a sweep's table."""

import json

import pytest

from mup_lightning.cli.main import main
from mup_lightning.studies.transfer.best import NEEDED

HEAD = ",".join(NEEDED)


def table(tmp_path, *rows):
    """Rows of (optimizer, log2_value, seed, loss)."""
    lines = [f"{o},mup,2,128,4,recipe.lr,{v},{s},{loss},6.5,120" for o, v, s, loss in rows]
    path = tmp_path / "results.csv"
    path.write_text("\n".join([HEAD, *lines]) + "\n")
    return str(path)


def test_the_best_is_the_lowest_mean_over_seeds(tmp_path, capsys):
    path = table(
        tmp_path,
        *[("sgd", -3, s, loss) for s, loss in enumerate((6.0, 6.2))],
        *[("sgd", -2, s, loss) for s, loss in enumerate((5.0, 5.8))],
        *[("sgd", -1, s, loss) for s, loss in enumerate((4.9, ""))],
        ("lion", -9, 0, 5.3),
    )
    assert main(["report", "best", path]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["optimizer", "best", "recipe.lr", "loss", "others", "tried"]
    assert lines[1].split() == ["lion", "2^-9", "(edge)", "5.300"]
    assert lines[2].split() == ["sgd", "2^-2", "5.400", "2^-3", "6.100,", "2^-1", "diverged"]
    assert lines[4:] == ["120 steps; a unigram model has 6.500 nats per token"]
    assert main(["report", "best", str(tmp_path)]) == 0  # the folder serves, too
    assert capsys.readouterr().out.splitlines() == lines


def test_an_unlucky_seed_does_not_spoil_the_values_that_it_has_run(tmp_path, capsys):
    """Seed 0 alone at 2^-4 to 2^-2, where it is lucky; seeds 1 and 2, which are not, at 2^-3 too."""
    own, luck = {-4: 5.02, -3: 5.0, -2: 5.05, -1: 5.3}, (-0.1, 0.05, 0.06)
    rows = [("sgd", v, s, own[v] + luck[s]) for v in own for s in (range(3) if v in (-3, -1) else (0,))]
    assert main(["report", "best", table(tmp_path, *rows)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[1].split()[1] == "2^-3"
    assert printed[-1].startswith("Losses are means over seeds; of values that were run with different ones, each is ")


def test_markdown_and_json_say_the_same(tmp_path, capsys):
    path = table(tmp_path, ("sgd", -3, 0, 6.0), ("sgd", -2, 0, 5.0), ("sgd", -1, 0, 5.5))
    assert main(["report", "best", path, "--markdown"]) == 0
    assert "| sgd | 2^-2 | 5.000 | 2^-3 6.000, 2^-1 5.500 |" in capsys.readouterr().out
    assert main(["report", "best", path, "--json"]) == 0
    (best,) = json.loads(capsys.readouterr().out)
    assert (best["best"], best["edge"], best["losses"]) == (-2.0, False, {"-3.0": 6.0, "-2.0": 5.0, "-1.0": 5.5})


def test_all_diverged(tmp_path, capsys):
    assert main(["report", "best", table(tmp_path, ("sgd", 3, 0, ""))]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["sgd", "-", "diverged", "2^3", "diverged"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no"),
        ("optimizer,loss\nsgd,1\n", "lacks the columns parametrization, branch_depth"),
        (HEAD + "\n", "has no runs yet: a heading alone"),
        ("", "is empty; expected a table of losses"),
        (f"{HEAD},seed\n", "has the columns seed more than once"),
        (f"{HEAD}\nsgd,mup,2,128,4,recipe.lr,-3,0,6.0,6.5,120,more\n", "row 2: expected 11 cells"),
        (f"{HEAD}\nsgd,mup,2,128,4,recipe.lr,x,0,6.0,6.5,120\n", "log2_value is 'x'; expected a number"),
        (f"{HEAD}\nsgd,mup,2,128,4,recipe.lr,-3,0,x,6.5,120\n", "loss is 'x'; expected a number"),
        (f"{HEAD}\nsgd,mup,2,128,4,recipe.lr,-3,0,6.0,x,120\n", "row 2: unigram_loss is 'x'; expected a number"),
        (f"{HEAD}\nsgd,mup,2,128,4,recipe.lr,-3,0,6.0,6.5,x\n", "steps is 'x'; expected a number"),
        (f"{HEAD}\nsgd,mup,2,128,4,recipe.lr,1e300,0,6.0,6.5,120\n", "log2_value is '1e300'; expected a power of two"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, capsys, content, message):
    path = tmp_path / "results.csv"
    if content is not None:
        path.write_text(content)
    assert main(["report", "best", str(path)]) == 1
    assert message in capsys.readouterr().err


def test_rows_that_differ_in_an_option_are_two_groups(tmp_path, capsys):
    rows = [f"sgd,mup,2,128,4,recipe.lr,-3,0,{loss},6.5,120,{norm},0.125" for norm, loss in ((True, 2.4), (False, 3.4))]
    path = tmp_path / "results.csv"
    path.write_text("\n".join([f"{HEAD},model.layer_norm,recipe.lr", *rows]) + "\n")
    assert main(["report", "best", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["model.layer_norm", "best"]
    assert [line.split()[:4] for line in lines[1:3]] == [
        ["True", "2^-3", "(edge)", "2.400"],
        ["False", "2^-3", "(edge)", "3.400"],
    ]


def test_a_value_at_which_one_seed_was_stopped_is_lost(tmp_path, capsys):
    rows = [("sgd", -3, 0, 6.0), ("sgd", -3, 1, 6.1), ("sgd", -2, 0, 5.0), ("sgd", -2, 1, "")]
    path = table(tmp_path, *rows)
    text = (tmp_path / "results.csv").read_text().splitlines()
    lines = [f"{text[0]},stopped", *(f"{line}," for line in text[1:-1]), text[-1].replace(",120", ",30") + ",hopeless"]
    (tmp_path / "results.csv").write_text("\n".join(lines) + "\n")
    assert main(["report", "best", path]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[1].split() == ["sgd", "2^-3", "(edge)", "6.050", "2^-2", "stopped"]
    assert printed[3].startswith("120 steps")


def test_value_zero_has_no_place(tmp_path, capsys):
    path = table(tmp_path, ("sgd", "", 0, 1.0), ("sgd", -2, 0, 5.0), ("sgd", -1, 0, 5.5))
    assert main(["report", "best", path]) == 0
    assert "note: 1 runs at value 0 are left out" in capsys.readouterr().err
    assert main(["report", "best", table(tmp_path, ("sgd", "", 0, 1.0))]) == 1
    assert "has runs at value 0 alone" in capsys.readouterr().err


def test_two_runs_of_one_value_and_seed_are_told(tmp_path, capsys):
    path = tmp_path / "results.csv"
    rows = [f"sgd,mup,2,128,4,recipe.lr,-3,0,{loss},6.5,120,{name}" for name, loss in (("aaa", 2.4), ("bbb", 3.4))]
    path.write_text("\n".join([f"{HEAD},config_hash", *rows]) + "\n")
    assert main(["report", "best", str(path)]) == 1
    assert "row 3 is 2^-3, seed 0 of sgd once more, of another configuration than" in capsys.readouterr().err
    path.write_text("\n".join([f"{HEAD},config_hash", rows[0], rows[0]]) + "\n")
    assert main(["report", "best", str(path)]) == 1
    assert "row 3 is 2^-3, seed 0 of sgd once more (before: " in capsys.readouterr().err


def test_a_run_may_stand_in_a_table_on_two_axes(tmp_path, capsys):
    path = tmp_path / "results.csv"
    rows = [f"sgd,mup,2,128,4,recipe.lr,-3,0,2.4,6.5,120,aaa,{axis}" for axis in ("width", "depth")]
    path.write_text("\n".join([f"{HEAD},config_hash,axis", *rows]) + "\n")
    assert main(["report", "best", str(path)]) == 0
    assert "2.400" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("6.5,120", "6.5,40"), "one group mixes runs of different length (steps: 40 in "),
        (("6.5,120", "3.1,120"), "one group mixes texts (unigram losses: 3.1 in "),
    ],
)
def test_what_cannot_be_compared_is_not(tmp_path, capsys, change, message):
    path = table(tmp_path, ("sgd", -3, 0, 6.0), ("sgd", -2, 0, 5.0))
    lines = (tmp_path / "results.csv").read_text().splitlines()
    (tmp_path / "results.csv").write_text("\n".join([*lines[:-1], lines[-1].replace(*change)]) + "\n")
    assert main(["report", "best", path]) == 1
    assert message in capsys.readouterr().err


def test_a_row_that_is_half_written_is_left_out_and_said(tmp_path, capsys):
    path = tmp_path / "results.csv"
    rows = [f"sgd,mup,2,128,4,recipe.lr,-{value},0,2.{value},6.5,120,{value}" for value in (3, 4)]
    path.write_text("\n".join([f"{HEAD},config_hash", *rows]))
    assert main(["report", "best", str(path)]) == 0
    printed = capsys.readouterr()
    assert "note: " in printed.err
    assert "half written" in printed.err
    assert "2^-4" not in printed.out
