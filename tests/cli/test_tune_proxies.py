"""The small models that `mup-lightning tune` makes of a target and a sweep file; none is trained here."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mup_lightning.cli import tune
from mup_lightning.cli.main import main
from mup_lightning.cli.options import build, config_parser, parse
from mup_lightning.cli.sweep import compose
from mup_lightning.errors import UserError
from mup_lightning.studies.sweep.run import Summary, SweepRun
from mup_lightning.studies.sweep.spec import load
from mup_lightning.studies.transfer.losses import read_losses
from mup_lightning.studies.transfer.transfer import transfer
from mup_lightning.studies.tune.kinship import cautions
from mup_lightning.studies.tune.proxies import proxy_cells, refuse_strangers
from tests.cli.tuning import of, options, proxies
from tests.studies.tables import COLUMNS, curves, write

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


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


def test_a_grid_goes_around_the_value_that_set_names(corpus, tmp_path, capsys):
    file = proxies(tmp_path, vary={"seed": [0]})
    arguments = ["--sweep", file, "--out", str(tmp_path / "out"), "--dry-run"]
    assert main(["tune", *options(corpus), *arguments, "--set", "recipe.lr=0.5"]) == 0
    printed = capsys.readouterr().out
    assert " 2^-4 to 2^2 (7) " in printed
    assert "2^-5" not in printed
    assert main(["tune", *options(corpus), *arguments, "--set", "recipe.lr=1e-3"]) == 0
    assert " 2^-13 to 2^-7 (7) " in capsys.readouterr().out
    for value, message in (("0", "recipe.lr is 0 in"), ("fast", "recipe.lr is 'fast' in")):
        assert main(["tune", *options(corpus), *arguments, "--set", f"recipe.lr={value}"]) == 1
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(("warmup", "own"), [(300, 12), (2000, 80)])
def test_a_warmup_is_carried_as_a_part_of_the_run(corpus, tmp_path, warmup, own):
    """300 of 10000 steps are 12 of 400, and 2000 are 80: more steps than the proxies have would be refused."""
    fixed = {"data.batch_size": 8, "data.micro_batch": 8, "data.val_tokens": 512, "trainer.max_steps": 400}
    sweep = load(proxies(tmp_path, set=fixed | {"recipe.base_width": 16, "recipe.base_depth": 1}))
    more = ["--trainer.max_steps=10000", f"--schedule.warmup_steps={warmup}"]
    parser = config_parser("test", "", "")
    target = build(parser, parse(parser, options(corpus, *more)))
    found = [cell.config for cell in proxy_cells(sweep, target, compose, below=1, above=1)]
    assert {config.schedule.warmup_steps for config in found} == {own}
    assert not [text for text in cautions(found, target) if "warm" in text]
    found[0].schedule.warmup_steps = None
    assert f"the warm-up takes 10.0% of the run in the proxies, {warmup / 100:.1f}% in the target" in cautions(
        found[:1], target
    )
    named = replace(
        sweep, grids=tuple(replace(grid, set=grid.set | {"schedule.warmup_steps": 300}) for grid in sweep.grids)
    )
    cells = proxy_cells(named, target, compose, below=1, above=1)
    assert {cell.config.schedule.warmup_steps for cell in cells} == {300}


@pytest.mark.parametrize("name", ["tune", "tune_wd"])
def test_the_shipped_proxies_follow_the_targets_own_recipe(corpus, tmp_path, name):
    """Another base shape would have them start from the target's base values unscaled, such as its init."""
    parser = config_parser("test", "", "")
    own = ["--recipe.base_width=128", "--recipe.base_depth=3", "--recipe.init_std=0.03", "--recipe.weight_decay=0.25"]
    target = build(parser, parse(parser, options(corpus, *own)))
    sweep = load(f"recipes/experiment/{name}.yaml")
    cells = proxy_cells(sweep, target, compose, below=1, above=1)
    key = sweep.value.rpartition(".")[2]
    assert {(cell.config.model.width, cell.config.model.depth) for cell in cells} > {(64, 2), (256, 2), (64, 8)}
    assert {str(replace(cell.config.recipe, **{key: getattr(target.recipe, key)})) for cell in cells} == {
        str(target.recipe)
    }


def test_a_dry_run_shows_any_value(corpus, tmp_path, capsys):
    file = proxies(tmp_path, value="recipe.weight_decay", vary={"seed": [0], "recipe.weight_decay": [0, 0.1, 0.3]})
    arguments = ["--sweep", file, "--out", str(tmp_path / "out"), "--dry-run"]
    assert main(["tune", *options(corpus, "--trainer.max_steps=2"), *arguments]) == 0
    printed = capsys.readouterr().out
    assert " 0 to 0.3 (3) " in printed
    small, large = (float(printed.split(mark)[0].split()[-1]) for mark in (" FLOPs\n", " FLOPs, "))
    times = float(printed.split(" times the small models together")[0].split()[-1])
    assert times == pytest.approx(large / small, rel=0.1)


def test_a_dry_run_runs_nothing(corpus, tmp_path, capsys):
    arguments = ["--sweep", proxies(tmp_path), "--out", str(tmp_path / "out"), "--dry-run"]
    assert main(["tune", *options(corpus), *arguments]) == 0
    printed = capsys.readouterr().out
    assert "24 configurations, 24 left" in printed
    rows = [" ".join(line.split()) for line in printed.splitlines() if line[:1].isdecimal()]
    tokens = 8 * 30 * 8 * 16  # runs x steps x batch x context
    assert rows[0].startswith(f"16 1 width and depth 2^-9 to 2^-3 (4) 0, 1 8 0 {tokens:,} ")
    assert [row.partition(" 2^")[0] for row in rows[:3]] == ["16 1 width and depth", "16 2 depth", "32 1 width"]
    assert "the target, width 64, depth 4: 90 steps of " in printed
    assert "not transferred by the recipe: " in printed
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["tune", "tune_wd"])
def test_the_shipped_proxies_suit_every_size_and_optimizer(name):
    from mup_lightning.studies.tune.kinship import as_proxy, differences
    from mup_lightning.training.checkpoint import plain

    sweep = load(RECIPES / "experiment" / f"{name}.yaml")
    for optimizer in (RECIPES / "optimizer").glob("*.yaml"):
        target = compose([str(RECIPES / "gpt2.yaml"), str(RECIPES / "size" / "xl.yaml"), str(optimizer)], {})
        for grid in sweep.grids:
            settings = {key: values[0] for key, values in grid.vary.items()} | grid.set
            flat = {f"{s}.{k}": v for s, part in plain(as_proxy(target)).items() if isinstance(part, dict)
                    for k, v in part.items() if not isinstance(v, dict)}  # fmt: skip
            proxy = compose([str(optimizer)], flat | settings)
            assert differences(proxy, target, sweep.value) == []


@pytest.mark.parametrize(("optimum", "grown"), [(-6.6, [-5, -4]), (-11.4, [-14, -13]), (-9, [])])
def test_the_grid_grows_where_a_value_as_good_as_the_best_is_the_last(corpus, tmp_path, monkeypatch, optimum, grown):
    """Nothing is run: the report reads a table whose best values are known."""
    chance = np.random.default_rng(6)
    losses = curves((16, 32), (optimum, optimum), noise=0.004, seeds=3, grid=range(-12, -5), chance=chance)
    found = transfer(read_losses(write(tmp_path / "t.csv", losses)))
    assert {o.edge for finding in found for o in finding.optima} == {0}
    values = set()
    monkeypatch.setattr(
        SweepRun, "__init__", lambda run, cells, *_, **__: values.update(c.config.recipe.lr for c in cells)
    )
    monkeypatch.setattr(SweepRun, "summary", Summary(workers=1), raising=False)
    monkeypatch.setattr(SweepRun, "run", lambda run: Summary(workers=1))
    monkeypatch.setattr(tune, "_ROUNDS", 2)
    monkeypatch.setattr(tune, "_find", lambda folder, cells: found)
    file, out = proxies(tmp_path, vary={"seed": [0]}), tmp_path / "out"
    out.mkdir()
    assert main(["tune", *options(corpus, "--recipe.lr", str(2**-9)), "--sweep", file, "--out", str(out)]) == 0
    assert sorted({math.log2(value) for value in values} - set(range(-12, -5))) == grown


def test_another_tune_through_the_same_configurations_is_not_read(tmp_path):
    """A sweep of rates at one decay and one of decays at one rate meet: what is in both has a row of each."""
    columns = (*COLUMNS, "value", "config_hash")
    rows = [(*row, "recipe.weight_decay", f"h{n}") for n, row in enumerate(curves((16, 32), (-7, -7)))]
    also = [("mup", "width", row[2], -3, 0, row[5], "recipe.lr", row[-1]) for row in rows if row[3] == -10]
    grown = [("mup", "depth", 1, *row[3:]) for row in rows if row[2] == 16]
    write(tmp_path / "results.csv", [*rows, *also, *grown], columns)
    cells = [SimpleNamespace(hash=row[-1], axes=("width",), value="recipe.weight_decay") for row in rows]
    (finding,) = tune._find(tmp_path, cells)
    assert (finding.settings["value"], finding.axis) == ("recipe.weight_decay", "width")


def test_values_that_all_lie_below_the_floor_are_refused(corpus, tmp_path, capsys):
    file = proxies(tmp_path, vary={"seed": [0]})
    for target, small in (([], ["--set", "recipe.lr=0.000001"]), (["--schedule.min_lr=1"], ["--dry-run"])):
        arguments = ["--sweep", file, "--out", str(tmp_path / "out"), *small]
        assert main(["tune", *options(corpus, *target), *arguments]) == 1
        assert "that would be tried lies below schedule.min_lr" in capsys.readouterr().err
    # Values that the sweep file's own floor allows are tried.
    arguments = ["--sweep", file, "--out", str(tmp_path / "out"), "--dry-run", "--set", "schedule.min_lr=0"]
    assert main(["tune", *options(corpus, "--schedule.min_lr=1"), *arguments]) == 0


def test_a_second_tune_in_a_folder_is_told_to_come_back(corpus, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(SweepRun, "run", lambda run: Summary(workers=1, elsewhere=2))
    arguments = ["--sweep", proxies(tmp_path), "--out", str(tmp_path / "out")]
    assert main(["tune", *options(corpus), *arguments]) == 1
    assert "is not complete: repeat this command once the other one has ended" in capsys.readouterr().out


def test_proxies_have_heads_of_the_targets_dimension(corpus):
    sweep = load("recipes/experiment/tune.yaml")
    target = of(*options(corpus, "--model.width=128", "--model.heads=4"))
    found = [cell.config for cell in proxy_cells(sweep, target, compose, below=0, above=0)]
    assert {proxy.model.head_dim for proxy in found} == {32}
    assert not [text for text in cautions(found, target) if "head_dim" in text]
    # 48 divides none of 64, 128 and 256: the heads stay what they are, and it is said of all of them.
    target = of(*options(corpus, "--model.width=96", "--model.heads=2"))
    found = [cell.config for cell in proxy_cells(sweep, target, compose, below=0, above=0)]
    assert {proxy.model.head_dim for proxy in found} == {64}
    assert "model.head_dim is 64 in the proxies, 48 in the target" in cautions(found, target)
    found[0].model.head_size = 32
    assert "model.head_dim is 32 or 64 in the proxies, 48 in the target" in cautions(found, target)


def test_sp_knows_no_base_shape(corpus):
    sp = [of(*options(corpus, "--recipe.parametrization=sp", f"--recipe.base_width={n}")) for n in (64, 128)]
    refuse_strangers(sp, sp[0], "recipe.lr", "")
    mup = [of(*options(corpus, f"--recipe.base_width={n}")) for n in (64, 128)]
    with pytest.raises(UserError, match="several base shapes"):
        refuse_strangers(mup, mup[0], "recipe.lr", "")
