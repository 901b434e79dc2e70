"""`mup-lightning tune`: from a target to a recipe file, on real sweeps of tiny models."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from mup_lightning.cli import next_command, tune
from mup_lightning.cli.main import main
from mup_lightning.cli.options import build, config_parser, parse
from mup_lightning.cli.sweep import compose
from mup_lightning.experiments.sweep.spec import load
from mup_lightning.experiments.tune.kinship import cautions
from mup_lightning.experiments.tune.proxies import proxy_cells

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def options(corpus, *more):
    """Of a target of width 64 and depth 4."""
    fixed = {
        "model.width": 64,
        "model.depth": 4,
        "model.context": 32,
        "recipe.optimizer": "adamw",
        "recipe.lr": 2**-7,
        "data.path": corpus,
        "data.tokenizer": "bytes",
        "trainer.max_steps": 90,
        "trainer.accelerator": "cpu",
    }
    return [f"--{key}={value}" for key, value in fixed.items()] + list(more)


def proxies(folder, **changes):
    """A sweep file of models of a second: two widths, two depths, 30 steps."""
    sweep = {
        "value": "recipe.lr",
        "set": {
            "model.context": 16,
            "recipe.base_width": 16,
            "recipe.base_depth": 1,
            "data.batch_size": 8,
            "data.micro_batch": 8,
            "data.val_tokens": 512,
            "trainer.max_steps": 30,
        },
        "vary": {"seed": [0, 1], "recipe.lr": {"log2": [-9, -7, -5, -3]}},
        "grids": [
            {"axis": "model.width", "set": {"model.depth": 1}, "vary": {"model.width": [16, 32]}},
            {"axis": "model.depth", "set": {"model.width": 16}, "vary": {"model.depth": [1, 2]}},
        ],
    }
    file = folder / "proxies.yaml"
    file.write_text(yaml.safe_dump({"sweep": sweep | changes}))
    return str(file)


def rows_of(folder):
    return list(csv.DictReader((folder / "results.csv").open()))


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
    assert text.startswith("# Tuned on small models, for (64, 4). 24 runs of 30 steps, up to 2 seeds: ")
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
    assert "next:\n  mup-lightning train --model.width 64 --model.depth 4 " in printed
    assert printed.rstrip().endswith(f"--trainer.accelerator cpu -c {out}/tuned.yaml")


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


def test_a_sweep_file_that_contradicts_the_target_is_refused_before_it_runs(corpus, tmp_path, capsys):
    file = proxies(tmp_path, set={"model.activation": "relu", "data.batch_size": 8, "data.micro_batch": 8})
    out = tmp_path / "out"
    assert main(["tune", *options(corpus), "--sweep", file, "--out", str(out)]) == 1
    assert "model.activation is relu in the proxy, gelu in the target" in capsys.readouterr().err
    assert not (out / "results.csv").exists()


def test_several_base_shapes_are_refused(corpus, tmp_path, capsys):
    file = proxies(tmp_path, vary={"recipe.base_width": [16, 32], "recipe.lr": [0.01]})
    arguments = ["--set", "data.batch_size=8", "--set", "data.micro_batch=8", "--out", str(tmp_path / "out")]
    assert main(["tune", *options(corpus), "--sweep", file, *arguments]) == 1
    assert "several base shapes, (16, 1) and (32, 1)" in capsys.readouterr().err


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


def test_a_grid_goes_around_the_value_that_set_names(corpus, tmp_path, capsys):
    file = proxies(tmp_path, vary={"seed": [0]})
    arguments = ["--sweep", file, "--out", str(tmp_path / "out"), "--dry-run"]
    assert main(["tune", *options(corpus), *arguments, "--set", "recipe.lr=0.5"]) == 0
    printed = capsys.readouterr().out
    assert all(f"lr={value} " in printed for value in ("2^-4", "2^-3", "2^-2", "2^-1", "1.0", "2.0", "4.0"))
    assert "2^-5" not in printed
    for value, message in (("0", "recipe.lr is 0 in"), ("fast", "recipe.lr is 'fast' in")):
        assert main(["tune", *options(corpus), *arguments, "--set", f"recipe.lr={value}"]) == 1
        assert message in capsys.readouterr().err


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
    assert printed.endswith(f"-c {out}/tuned_weight_decay.yaml")


@pytest.mark.parametrize(("warmup", "own"), [(300, 12), (2000, 80)])
def test_a_warmup_is_carried_as_a_part_of_the_run(corpus, tmp_path, warmup, own):
    """300 of 10000 steps are 12 of 400, and 2000 are 80: more steps than the proxies have would be refused."""
    fixed = {"data.batch_size": 8, "data.micro_batch": 8, "data.val_tokens": 512, "trainer.max_steps": 400}
    sweep = load(proxies(tmp_path, set=fixed | {"recipe.base_width": 16, "recipe.base_depth": 1}))
    more = ["--trainer.max_steps=10000", f"--schedule.warmup_steps={warmup}"]
    parser = config_parser("test", "", "")
    target = build(parser, parse(parser, options(corpus, *more)))
    found = [cell.config for cell in proxy_cells(sweep, target, tmp_path / "out", compose, below=1, above=1)]
    assert {config.schedule.warmup_steps for config in found} == {own}
    assert not [text for text in cautions(found[0], target) if "warm" in text]
    found[0].schedule.warmup_steps = None
    assert f"the warm-up takes 10.0% of the run in the proxies, {warmup / 100:.1f}% in the target" in cautions(
        found[0], target
    )
    named = replace(
        sweep, grids=tuple(replace(grid, set=grid.set | {"schedule.warmup_steps": 300}) for grid in sweep.grids)
    )
    cells = proxy_cells(named, target, tmp_path / "out", compose, below=1, above=1)
    assert {cell.config.schedule.warmup_steps for cell in cells} == {300}


@pytest.mark.parametrize("name", ["tune", "tune_wd"])
def test_the_shipped_proxies_follow_the_targets_own_recipe(corpus, tmp_path, name):
    """Another base shape would have them start from the target's base values unscaled, such as its init."""
    parser = config_parser("test", "", "")
    own = ["--recipe.base_width=128", "--recipe.base_depth=3", "--recipe.init_std=0.03", "--recipe.weight_decay=0.25"]
    target = build(parser, parse(parser, options(corpus, *own)))
    sweep = load(f"recipes/experiment/{name}.yaml")
    cells = proxy_cells(sweep, target, tmp_path / "out", compose, below=1, above=1)
    key = sweep.value.rpartition(".")[2]
    assert {(cell.config.model.width, cell.config.model.depth) for cell in cells} > {(64, 2), (256, 2), (64, 8)}
    assert {str(replace(cell.config.recipe, **{key: getattr(target.recipe, key)})) for cell in cells} == {
        str(target.recipe)
    }


def test_heads_are_compared_by_their_dimension(swept, corpus, tmp_path, capsys):
    """Width 64 has heads of 32 here, those of the proxies are of 16 and 32: a doubt, no other model."""
    _, table = swept
    arguments = ["--results", str(table), "--out", str(tmp_path / "out")]
    assert main(["tune", *options(corpus, "--model.head_size=32"), *arguments]) == 0
    assert "model.head_dim is 16 in the proxies, 32 in the target" in capsys.readouterr().out


def test_the_next_command_of_make_is_complete():
    argv = """-c recipes/gpt2.yaml -c recipes/size/xl.yaml -c recipes/optimizer/adamw.yaml
        -c recipes/strategy/single.yaml -c mine.yaml --recipe.parametrization mup
        --data.path data/prepared/austen-bytes --data.tokenizer bytes
        --run.name xl-adamw-mup --recipe.branch_depth 1 --recipe.lr 0.5 --model.dropout=0.1 --set seed=1 --workers 2
        --dry-run --sweep recipes/experiment/tune.yaml""".split()
    assert next_command.training(argv, Path("out/tuned.yaml"), "recipe.lr") == (
        "make train SIZE=xl OPT=adamw STRATEGY=single PARAM=mup TOKENIZER=bytes RUN=xl-adamw-mup BRANCH_DEPTH=1 "
        "CARD=data/austen.yaml CONFIG='mine.yaml out/tuned.yaml' ARGS='--model.dropout 0.1'"
    )
    argv[argv.index("data/prepared/austen-bytes")] = "elsewhere/words"
    assert " DATA=elsewhere/words " in next_command.training(argv, Path("out/tuned.yaml"), "recipe.lr")


def test_a_dry_run_runs_nothing(corpus, tmp_path, capsys):
    arguments = ["--sweep", proxies(tmp_path), "--out", str(tmp_path / "out"), "--dry-run"]
    assert main(["tune", *options(corpus), *arguments]) == 0
    assert "24 configurations, 24 left" in capsys.readouterr().out
    assert not (tmp_path / "out" / "results.csv").exists()


def test_a_table_without_its_configurations_is_refused(swept, corpus, tmp_path, capsys):
    _, table = swept
    (tmp_path / "results.csv").write_text((table / "results.csv").read_text())
    assert main(["tune", *options(corpus), "--results", str(tmp_path)]) == 1
    assert "there is no" in (error := capsys.readouterr().err)
    assert "configurations.json, which tells what the runs of the table were" in error
    (tmp_path / "configurations.json").write_text(json.dumps({}))
    assert main(["tune", *options(corpus), "--results", str(tmp_path)]) == 1
    assert "has no run that configurations.json beside it knows" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["tune", "tune_wd"])
def test_the_shipped_proxies_suit_every_size_and_optimizer(name):
    from mup_lightning.experiments.tune.kinship import as_proxy, differences
    from mup_lightning.training.run_folder import plain

    sweep = load(RECIPES / "experiment" / f"{name}.yaml")
    for optimizer in (RECIPES / "optimizer").glob("*.yaml"):
        target = compose([str(RECIPES / "gpt2.yaml"), str(RECIPES / "size" / "xl.yaml"), str(optimizer)], {})
        for grid in sweep.grids:
            settings = {key: values[0] for key, values in grid.vary.items()} | grid.set
            flat = {f"{s}.{k}": v for s, part in plain(as_proxy(target)).items() if isinstance(part, dict)
                    for k, v in part.items() if not isinstance(v, dict)}  # fmt: skip
            proxy = compose([str(optimizer)], flat | settings)
            assert differences(proxy, target, sweep.value) == []
