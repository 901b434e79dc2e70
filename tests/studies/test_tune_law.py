"""`mup-lightning tune --law`: from a target to a law and a recipe file that uses it, on real sweeps of tiny models."""

import re
import shlex

import pytest
import yaml

from mup_lightning.cli.main import main
from mup_lightning.config.load import build_config
from mup_lightning.spectral.horizon import read_law
from mup_lightning.studies.sweep.spec import load
from mup_lightning.studies.transfer.law import cells_of
from mup_lightning.studies.transfer.losses import read_losses
from mup_lightning.studies.tune.law import Design
from tests.studies.tables import COLUMNS, write
from tests.studies.tuning import options, rows_of, target

FIXED = {"model.width": 16, "model.depth": 1, "model.context": 16, "tokens": 2048, "data.batch_size": 8,
         "data.val_tokens": 512}  # fmt: skip
BASE = ["--recipe.base_width=16", "--recipe.base_depth=1", "--schedule.min_lr=0"]


def star(folder, **changes):
    """A sweep file of tiny models: two lengths and two batches, of 8 to 32 steps; the middle rate of three is best."""
    sweep = {
        "for_tune": True,
        "set": FIXED,
        "vary": {"seed": [0, 1], "recipe.lr": {"log2": [-8, -4, 0]}},
        "grids": [
            {"axis": "tokens", "vary": {"tokens": [2048, 4096]}},
            {"axis": "batch", "vary": {"data.batch_size": [8, 16]}},
        ],
    }
    file = folder / "star.yaml"
    file.write_text(yaml.safe_dump({"sweep": sweep | changes}))
    return str(file)


@pytest.fixture(scope="module")
def tuned(corpus, tmp_path_factory):
    """A finished tune: its sweep file, its folder."""
    folder = tmp_path_factory.mktemp("law")
    file, out = star(folder), folder / "out"
    assert main(["tune", *options(corpus, *BASE), "--law", "--sweep", file, "--out", str(out), "--workers", "0"]) == 0
    return file, out


def test_the_file_trains_by_the_law_of_its_runs(tuned, corpus, tmp_path, capsys):
    file, out = tuned
    law = read_law(f"fitted:{out / 'law.json'}")
    assert {axis: found is not None for axis, found in law.exponents.items()} == {
        "width": False, "depth": False, "tokens": True, "batch": True
    }  # fmt: skip
    assert law.ranges == {"width": (16, 16), "depth": (1, 1), "tokens": (2048, 4096), "batch": (128, 256)}
    recipe = build_config([out / "tuned.yaml"]).recipe
    assert (recipe.time_rule, recipe.law) == (f"fitted:{out / 'law.json'}", law)
    assert (recipe.base_width, recipe.base_batch) == (16, round(law.at["batch"]))
    rows = rows_of(out)
    seeds = {(row["axis"], row["size"], row["log2_value"]): set() for row in rows}
    for row in rows:
        seeds[row["axis"], row["size"], row["log2_value"]].add(row["seed"])
    assert {"0,1" if len(own) == 2 else "0" for own in seeds.values()} == {"0", "0,1"}  # more at the best alone
    before = [path.read_bytes() for path in (out / "tuned.yaml", out / "law.json", out / "results.csv")]
    arguments = ["--law", "--sweep", file, "--out", str(out), "--workers", "0"]
    assert main(["tune", *options(corpus, *BASE), *arguments]) == 0
    assert [path.read_bytes() for path in (out / "tuned.yaml", out / "law.json", out / "results.csv")] == before
    printed, error = capsys.readouterr()
    assert ": loss " not in error  # nothing has been run again
    assert "none: one size" in printed
    assert "the best rate is taken not to move" in printed
    assert "tokens of the target is" in printed
    words = shlex.split(printed.splitlines()[-1])
    short = ["--run.root", str(tmp_path), "--trainer.max_steps=2", "--data.batch_size=8", "--data.micro_batch=8"]
    assert main([*words[1:], *short]) == 0


def test_results_that_are_there_serve_too(tuned, corpus, tmp_path, capsys):
    """Those of a sweep's folder, and a table alone, which does not say its base values."""
    _, out = tuned
    rows = (out / "results.csv").read_text()
    (tmp_path / "table.csv").write_text(rows)
    for results, more in ((out, []), (tmp_path / "table.csv", ["taken to be the target's"])):
        there = tmp_path / "out"
        assert main(["tune", *options(corpus, *BASE), "--law", "--results", str(results), "--out", str(there)]) == 0
        ours, theirs = (read_law(f"fitted:{folder / 'law.json'}") for folder in (there, out))
        assert ours.exponents == theirs.exponents
        printed = capsys.readouterr().out
        assert all(text in printed for text in more)
    assert main(["tune", *options(corpus, *BASE), "--results", str(out), "--out", str(tmp_path)]) == 1
    assert "has runs over batch and tokens, along which the best value moves; add --law" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "more", "message"),
    [
        ({}, ["--budget", "5"], "--budget says how far the sizes of --law reach; give both, or neither"),
        ({}, ["--law", "--budget", "1e-6", "--dry-run"], "is too small for the design of .*: it needs 1 minutes on"),
        ({}, ["--law", "--recipe.time_rule=sde", "--recipe.base_batch=128", "--recipe.base_tokens=2048"],
         "recipe.time_rule is sde, and a law is fitted to runs under none"),
        ({"value": "recipe.weight_decay"}, ["--law"], "is of recipe.weight_decay; --law fits the law of recipe.lr"),
        ({}, [], "has runs over batch and tokens, along which the best value moves; add --law"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(corpus, tmp_path, capsys, changes, more, message):
    arguments = ["--sweep", star(tmp_path, **changes), "--out", str(tmp_path / "out"), *more]
    assert main(["tune", *options(corpus, *BASE), *arguments]) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_a_dry_run_says_the_design_and_its_cost(corpus, tmp_path, capsys):
    arguments = ["--law", "--sweep", star(tmp_path, vary={}), "--out", str(tmp_path / "out"), "--dry-run"]
    assert main(["tune", *options(corpus, *BASE), *arguments]) == 0
    printed = capsys.readouterr().out
    assert "15 configurations, 15 left" in printed
    assert "then seeds 0 at the best 3 rates of each" in printed
    assert not (tmp_path / "out").exists()


def test_a_cell_grows_where_its_best_is_the_last_and_has_more_seeds_where_it_is_not(corpus, tmp_path):
    sweep = load(star(tmp_path, vary={"seed": [0, 1]}), tuning=True)
    design, first = Design.of(sweep, target(corpus)), {-9.0: {0}, -8.0: {0}, -7.0: {0}, -6.0: {0}, -5.0: {0}}
    assert design.first(-7.2) == first

    def found(best):
        losses = [("mup", "width", 16, value, 0, 3 + 0.1 * (value - best) ** 2) for value in first]
        table = [(*row, 1, 10, 1280, "adamw") for row in losses]
        path = write(tmp_path / "t.csv", table, (*COLUMNS, "depth", "steps", "tokens", "optimizer"))
        (optimum,) = cells_of(read_losses(path))[0].values()
        return optimum

    assert design.next(found(-5.1), first) == first | {-4.0: {0}, -3.0: {0}}
    assert design.next(found(-9.0), first) == first | {-10.0: {0}, -11.0: {0}}
    assert design.next(found(-7.1), first) == first | {-8.0: {0, 1}, -7.0: {0, 1}, -6.0: {0, 1}}


def test_a_larger_budget_reaches_further_up_to_the_target(corpus, tmp_path, monkeypatch):
    grids = [
        {"axis": "tokens", "vary": {"tokens": [25600, 51200, 102400]}},
        {"axis": "batch", "vary": {"data.batch_size": [8, 16]}},
        {"axis": "model.width", "vary": {"model.width": [16, 32]}},
    ]
    sweep = load(star(tmp_path, grids=grids, set=FIXED | {"tokens": 25600}), tuning=True)
    large = target(corpus, model__width=64, trainer__max_steps=4000, recipe__base_width=16, recipe__base_depth=1)
    design = Design.of(sweep, large)
    assert design.centre == (16, 1, 25600, 128)
    least = design.minutes(1e9, 1)
    reached = []
    for budget in (least, 4 * least, 1e9):
        found = design.within(budget, 1e9, 1)
        assert found.minutes(1e9, 1) <= budget
        reached.append(tuple(max(side) for side in zip(*found.places, strict=True)))
    assert reached[0] == (32, 1, 102400, 256)
    assert reached == sorted(reached)
    width, _, tokens, batch = reached[-1]
    assert width == 64
    assert tokens <= 4000 * large.tokens_per_step
    assert 25600 / batch >= 100 or batch == 256
