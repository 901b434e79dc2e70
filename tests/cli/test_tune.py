"""`mup-lightning tune`: from a target to a recipe file, on real sweeps of tiny models."""

import csv
import json

import pytest
import yaml

from mup_lightning.cli import tune
from mup_lightning.cli.main import main
from mup_lightning.cli.options import build, config_parser, parse
from tests.cli.tuning import options, proxies, rows_of


@pytest.fixture(scope="module")
def swept(corpus, tmp_path_factory):
    """A finished tune: its sweep file, its folder."""
    folder = tmp_path_factory.mktemp("tune")
    file = proxies(folder)
    assert main(["tune", *options(corpus), "--sweep", file, "--out", str(folder / "out"), "--workers", "1"]) == 0
    return file, folder / "out"


def test_the_file_trains_the_target_with_the_value_that_the_table_says(swept, corpus):
    _, out = swept
    rows = rows_of(out)
    assert len({row["config_hash"] for row in rows}) == 3 * 4 * 2  # the base model stands on both axes
    assert {row["optimizer"] for row in rows} == {"adamw"}  # the target's own; the default is another
    text = (out / "tuned.yaml").read_text()
    found = yaml.safe_load(text)["recipe"]
    assert (found["base_width"], found["base_depth"]) == (16, 1)
    assert 2**-9 <= found["lr"] <= 2**-3
    best = min((float(row["loss"]), float(row["log2_value"])) for row in rows if row["width"] == "16")[1]
    assert 2 ** (best - 1.5) < found["lr"] < 2 ** (best + 1.5)
    comment = " ".join(text.replace("#", "").split())
    assert comment.startswith(
        f"Tuned on small models, for (64, 4). 24 runs of 30 steps, up to 2 seeds: {out}/results.csv "
    )
    assert "trainer.max_steps is 30 in the proxies, 90 in the target" in " ".join(text.replace("#", "").split())
    assert (out / "transfer_width_lr.png").exists() or list(out.glob("transfer_width*.png"))
    parser = config_parser("test", "", "")
    target = build(parser, parse(parser, [*options(corpus), "-c", str(out / "tuned.yaml")]))
    assert (target.recipe.lr, target.recipe.base_width, target.recipe.base_depth) == (found["lr"], 16, 1)
    assert (target.recipe.optimizer, target.model.width) == ("adamw", 64)
    said = " ".join(text.replace("#", "").split())
    assert "the target's own base shape is (256, 4), the proxies' is (16, 1)" in said
    # What the rate belongs to comes with it, whatever the command that trains it says before.
    others = ["--recipe.optimizer=lion", "--recipe.parametrization=sp", "--recipe.branch_depth=1", "--recipe.pure=true",
              "--recipe.variant=measured", "--model.layer_norm=false", "--recipe.init_std=0.5"]  # fmt: skip
    target = build(parser, parse(parser, [*options(corpus), *others, "-c", str(out / "tuned.yaml")]))
    kept = (target.recipe.optimizer, target.recipe.parametrization, target.recipe.branch_depth, target.recipe.pure)
    assert kept == ("adamw", "mup", 2, False)
    assert (target.recipe.variant, target.model.layer_norm, target.recipe.init_std) == ("published", True, 0.02)
    assert target.model.width == 64


def test_the_same_command_repeats_nothing(swept, corpus, capsys):
    file, out = swept
    before, written = (out / "results.csv").read_text(), (out / "tuned.yaml").read_text()
    assert main(["tune", *options(corpus), "--sweep", file, "--out", str(out)]) == 0
    assert (out / "results.csv").read_text() == before
    assert (out / "tuned.yaml").read_text() == written
    printed = capsys.readouterr().out
    assert "24 configurations, 24 of them done already" in printed
    assert "recipe.lr 0.0" in printed
    assert "at base shape (16, 1)" in printed
    assert "doublings to the target" in printed
    assert "next: the target, width 64, depth 4: 90 steps of " in printed
    assert f" FLOPs\n  mup-lightning train -c {out}/tuned.yaml --model.width 64 --model.context 32 " in printed
    assert printed.rstrip().endswith("--trainer.max_steps 90 --trainer.accelerator cpu")


def test_a_table_that_is_there_serves_too(swept, corpus, tmp_path, capsys):
    _, table = swept
    out = tmp_path / "again"
    assert main(["tune", *options(corpus), "--results", str(table), "--out", str(out)]) == 0
    ours, theirs = (yaml.safe_load((folder / "tuned.yaml").read_text()) for folder in (out, table))
    assert ours == theirs
    assert not (out / "results.csv").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--recipe.optimizer=lion"], "recipe.optimizer is adamw in the proxy, lion in the target"),
        (["--model.layer_norm=false"], "model.layer_norm is True in the proxy, False in the target"),
        (["--recipe.branch_depth=1"], "recipe.branch_depth is 2 in the proxy, 1 in the target"),
        (["--recipe.parametrization=sp"], "recipe.parametrization is mup in the proxy, sp in the target"),
        (["--recipe.init_std=0.01"], "recipe.init_std is 0.02 in the proxy, 0.01 in the target"),
        (["--rules.adamw.beta2=0.99"], "rules.adamw.beta2 is 0.95 in the proxy, 0.99 in the target"),
    ],
)
def test_a_table_of_other_models_is_refused(swept, corpus, tmp_path, capsys, more, message):
    _, table = swept
    out = tmp_path / "out"
    assert main(["tune", *options(corpus, *more), "--results", str(table), "--out", str(out)]) == 1
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_a_grid_around_the_targets_own_value_grows_where_the_best_is_the_last(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(tune, "_ROUNDS", 2)
    file = proxies(tmp_path, vary={"seed": [0]}, grids=[
        {"axis": "model.width", "set": {"model.depth": 1}, "vary": {"model.width": [16, 32]}}])  # fmt: skip
    out = tmp_path / "out"
    arguments = ["--sweep", file, "--out", str(out), "--workers", "1", "--set", "trainer.max_steps=10"]
    assert main(["tune", *options(corpus, "--recipe.lr", str(2**-9)), *arguments]) == 0
    values = sorted({float(row["log2_value"]) for row in rows_of(out)})
    assert values[:7] == [-12, -11, -10, -9, -8, -7, -6]
    assert values[7:] == [-5, -4]


def test_another_value_has_a_file_of_its_own(corpus, tmp_path, capsys):
    file = proxies(tmp_path, value="recipe.weight_decay", vary={"seed": [0], "recipe.weight_decay": [0.25, 0.5, 1.0]},
                   grids=[{"set": {"model.depth": 1}, "vary": {"model.width": [16, 32]}}])  # fmt: skip
    out = tmp_path / "out"
    arguments = ["--sweep", file, "--out", str(out), "--workers", "1", "--set", "trainer.max_steps=10"]
    assert main(["tune", *options(corpus, "--recipe.weight_decay=0.1"), *arguments]) == 0
    assert not (out / "tuned.yaml").exists()
    found = yaml.safe_load((out / "tuned_weight_decay.yaml").read_text())["recipe"]
    assert 0.25 <= found["weight_decay"] <= 1
    assert found["lr"] == 2**-7  # the rate that it belongs to
    printed = capsys.readouterr().out.rstrip().rpartition("next:")[2]
    assert "recipe.weight_decay" not in printed  # an option would win over the file
    assert f" -c {out}/tuned_weight_decay.yaml " in printed


def test_heads_are_compared_by_their_dimension(swept, corpus, tmp_path, capsys):
    """Width 64 has heads of 32 here, those of the proxies are of 16 and 32: a doubt, no other model."""
    _, table = swept
    arguments = ["--results", str(table), "--out", str(tmp_path / "out")]
    assert main(["tune", *options(corpus, "--model.head_size=32"), *arguments]) == 0
    assert "model.head_dim is 16 or 32 in the proxies, 32 in the target" in capsys.readouterr().out


def test_a_table_without_its_configurations_is_refused(swept, corpus, tmp_path, capsys):
    _, table = swept
    (tmp_path / "results.csv").write_text((table / "results.csv").read_text())
    assert main(["tune", *options(corpus), "--results", str(tmp_path)]) == 1
    assert "there is no" in (error := capsys.readouterr().err)
    assert "configurations.json, which tells what the runs of the table were" in error
    (tmp_path / "configurations.json").write_text(json.dumps({}))
    assert main(["tune", *options(corpus), "--results", str(tmp_path)]) == 1
    assert "has no run that configurations.json beside it knows" in capsys.readouterr().err


def test_a_group_without_a_slope_is_heard(corpus, tmp_path, capsys):
    """One width only, and a target that is wider."""
    file = proxies(tmp_path, vary={"seed": [0], "recipe.lr": [2**-8, 2**-7, 2**-6]}, grids=[
        {"axis": "model.width", "set": {"model.depth": 1}, "vary": {"model.width": [16]}},
        {"axis": "model.depth", "set": {"model.width": 16}, "vary": {"model.depth": [1, 2]}}])  # fmt: skip
    arguments = ["--sweep", file, "--out", str(tmp_path / "out"), "--workers", "1", "--set", "trainer.max_steps=2"]
    assert main(["tune", *options(corpus), *arguments]) == 0
    printed = capsys.readouterr().out
    assert "warning: over width: cannot tell: there is only one size" in printed
    assert "warning: width was not varied among the proxies that trained (16; the target has 64)" in printed
    assert "warning: depth was not varied among the proxies" not in printed


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--dry-run"], "--dry-run"),
        (["--set", "seed=1", "--workers", "2"], "--set, --workers"),
        (["--sweep", tune.SWEEP], "--sweep"),
    ],
)
def test_a_table_takes_no_options_of_sweeps(swept, corpus, tmp_path, capsys, more, named):
    arguments = ["--results", str(swept[1]), "--out", str(tmp_path / "out"), *more]
    assert main(["tune", *options(corpus), *arguments]) == 1
    assert f"runs nothing, so it takes no {named};" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_to_resume_is_refused(corpus, tmp_path, capsys):
    assert main(["tune", *options(corpus), "--out", str(tmp_path / "out"), "--run.resume", "last", "--dry-run"]) == 1
    assert "run.resume is set, but tune trains small models" in capsys.readouterr().err


@pytest.mark.parametrize("more", [["--results", "TABLE"], ["--dry-run"], []])
def test_a_file_in_place_of_a_folder_is_refused(swept, corpus, tmp_path, capsys, more):
    (tmp_path / "file").touch()
    more = [str(swept[1]) if item == "TABLE" else item for item in more]
    for out in ("file", "file/below"):
        assert main(["tune", *options(corpus), "--out", str(tmp_path / out), *more]) == 1
        assert f"{tmp_path}/file is not a folder; expected one" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["[]", '{"a": 1}', '{"a": {"model": 3}}', '{"a": {"model": {"width": "x"}}}', "{"])
def test_damaged_configurations_are_named(swept, corpus, tmp_path, capsys, content):
    (tmp_path / "results.csv").write_text((swept[1] / "results.csv").read_text())
    (tmp_path / "configurations.json").write_text(content)
    assert main(["tune", *options(corpus), "--results", str(tmp_path)]) == 1
    assert f"{tmp_path}/configurations.json is damaged" in capsys.readouterr().err


def test_a_table_of_two_values_names_them_and_the_way_out(swept, corpus, tmp_path, capsys):
    rows = rows_of(swept[1])
    with (tmp_path / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows([*rows, *(row | {"value": "recipe.weight_decay", "config_hash": "0"} for row in rows[:1])])
    assert main(["tune", *options(corpus), "--results", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert (
        "holds sweeps of several values, recipe.lr and recipe.weight_decay; repeat the tune that ran the one" in error
    )
