"""The small models that `mup-lightning tune` makes of a target and a sweep file; none is trained here."""

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mup_lightning.cli.main import main
from mup_lightning.config.load import build_config
from mup_lightning.optim.schedule import warmup_steps
from mup_lightning.studies.sweep import run as sweep_run
from mup_lightning.studies.sweep.spec import load
from mup_lightning.studies.tune import tune
from mup_lightning.studies.tune.proxies import (
    incompatibilities,
    like_target,
    not_transferred,
    proxy_trials,
    refuse_incompatible,
)
from tests.studies.tables import curves, judged
from tests.studies.tuning import options, proxies, target

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--set", "data.batch_size=8", "--set", "data.micro_batch=8"]


@pytest.mark.parametrize(
    ("changes", "more", "message"),
    [
        ({"set": {"model.activation": "relu"}}, [], "model.activation is relu in the proxy, gelu in the target"),
        ({"vary": {"recipe.base_width": [16, 32], "recipe.lr": [1]}}, [], "several base shapes, (16, 1) and (32, 1)"),
        ({"value": "recipe.weight_decay", "vary": {}}, [], "recipe.weight_decay is 0.0 in the target; expected a num"),
        ({"vary": {}}, ["--set", "recipe.lr=0.1"], "--recipe.lr says what to search around"),
        ({"vary": {}}, ["--schedule.min_lr=1"], "schedule.min_lr"),
        ({"set": {"model.norm": "rmsnorm"}}, [], "model.norm is rmsnorm in the proxy, layernorm in the target"),
        ({"set": {"recipe.base.bias.lr": 2}}, [], "recipe.base.bias.lr is 2.0 in the proxy, None in the target"),
    ],
)
def test_sweep_files_that_contradict_the_target_are_refused(corpus, tmp_path, capsys, changes, more, message):
    out = tmp_path / "out"
    arguments = ["--sweep", proxies(tmp_path, **changes), "--out", str(out), *SMALL, *more]
    assert main(["tune", *options(corpus), *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_a_dry_run_shows_the_small_models_and_their_cost(corpus, tmp_path, capsys):
    arguments = ["--out", str(tmp_path / "out"), "--dry-run"]
    assert main(["tune", *options(corpus), "--sweep", proxies(tmp_path), *arguments]) == 0
    printed = capsys.readouterr().out
    assert "18 configurations, 18 left" in printed
    rows = [" ".join(line.split()) for line in printed.splitlines() if line.startswith("width=")]
    tokens = 6 * 30 * 8 * 16  # runs x steps x batch x context
    assert f"width=16 depth=1 2^-7 to 2^-3 (3) 6 0 {tokens:,} " in rows[-1]
    assert {row.partition(" 2^")[0] for row in rows} == {f"width={w} depth={d}" for w, d in ((16, 1), (16, 2), (32, 1))}
    assert "the target, width 64, depth 4: 90 steps of " in printed
    assert "not transferred by the recipe: " in printed
    small, large = map(float, re.findall(r"(\S+) FLOPs,", printed))
    times = float(printed.split(" times the small models together")[0].split()[-1].replace(",", ""))
    assert times == pytest.approx(large / small, rel=0.1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "more", "shown"),
    [
        ({"vary": {"seed": [0]}}, ["--recipe.lr=1e-3"], " 2^-13 to 2^-7 (7) "),
        ({"vary": {"seed": [0]}}, ["--schedule.min_lr=0.002"], " 2^-8 to 2^-4 (5) "),
        ({"vary": {"seed": [0]}}, ["--schedule.min_lr=1", "--set", "schedule.min_lr=0"], " 2^-10 to 2^-4 (7) "),
        ({"vary": {"seed": [0]}}, ["--schedule.min_lr=1", "--schedule.floor=0"], " 2^-10 to 2^-4 (7) "),
        ({"vary": {"seed": [0]}}, ["--schedule.min_lr=1", "--schedule.kind=constant"], " 2^-10 to 2^-4 (7) "),
        ({"value": "recipe.weight_decay", "vary": {"recipe.weight_decay": [0, 0.1, 0.3]}}, [], " 0 to 0.3 (3) "),
    ],
)
def test_the_grid_of_values(corpus, tmp_path, capsys, changes, more, shown):
    arguments = ["--sweep", proxies(tmp_path, **changes), "--out", str(tmp_path / "out"), "--dry-run"]
    assert main(["tune", *options(corpus), *arguments, *more]) == 0
    assert shown in capsys.readouterr().out


def test_a_warmup_is_carried_as_a_share_of_the_run(corpus, tmp_path):
    """2000 of 10000 steps are 80 of 400: more steps than the proxies have would be refused."""

    def small(like, **changes):
        sweep = load(proxies(tmp_path, **{"vary": {"seed": [0]}} | changes))
        return [trial.config for trial in proxy_trials(sweep, like, 0, 0)]

    large = target(corpus, trainer__max_steps=10000, schedule__warmup_steps=2000)
    found = small(large, set={"trainer.max_steps": 400})
    assert {config.schedule.warmup_steps for config in found} == {80}
    assert not [text for text in not_transferred(found, large) if "warm" in text]
    found[0].schedule.warmup_steps = None
    caveat = "the warm-up takes 10.0% of the run in the proxies, 20.0% in the target"
    assert caveat in not_transferred(found[:1], large)
    found[1].schedule = replace(found[1].schedule, kind="wsd", floor=0.1)
    caveats = not_transferred(found, large)
    assert "schedule.kind is cosine or wsd in the proxies, cosine in the target" in caveats
    assert "schedule.floor is 0.1 or None in the proxies, None in the target" in caveats
    in_tokens = target(corpus, trainer__max_steps=10000, schedule__warmup_tokens=2000 * large.tokens_per_step)
    fixed, varied = {"trainer.max_steps": 400}, {"trainer.max_steps": [100, 400]}
    for like, given, wanted in (
        (large, {"set": fixed | {"schedule.warmup_steps": 300}}, {(400, 300)}),
        (in_tokens, {"set": fixed | {"schedule.warmup_steps": 300}}, {(400, 300)}),
        (in_tokens, {"set": fixed}, {(400, 80)}),
        (large, {"set": fixed | {"schedule.warmup_share": 0.25}}, {(400, 100)}),
        (large, {"set": fixed, "vary": {"schedule.warmup_steps": [7]}}, {(400, 7)}),
        (large, {"vary": varied}, {(100, 20), (400, 80)}),
    ):
        assert {(config.trainer.max_steps, warmup_steps(config)) for config in small(like, **given)} == wanted


def test_the_shipped_proxies_follow_the_targets_own_recipe(corpus, monkeypatch):
    """Another base shape would have them start from the target's base values unscaled, such as its init."""
    monkeypatch.chdir(ROOT)
    own = {"base_width": 128, "base_depth": 3, "init_std": 0.03, "weight_decay": 0.25}
    large = target(corpus, **{f"recipe__{key}": value for key, value in own.items()})
    sweep = load("recipes/experiment/tune.yaml", tuning=True)
    configs = [trial.config for trial in proxy_trials(sweep, large, 1, 0)]
    assert {(config.model.width, config.model.depth) for config in configs} > {(64, 2), (256, 2), (64, 8)}
    assert {str(replace(config.recipe, lr=large.recipe.lr)) for config in configs} == {str(large.recipe)}


@pytest.mark.parametrize("name", ["tune", "tune_wd", "tune_logits"])
def test_the_shipped_proxies_suit_every_size_optimizer_and_family(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    sweep = load(f"recipes/experiment/{name}.yaml", tuning=True)
    for preset in (*Path("recipes/optimizer").iterdir(), *Path("recipes/model").iterdir()):
        large = build_config([Path("recipes/gpt2.yaml"), Path("recipes/size/xl.yaml"), preset])
        for grid in sweep.grids:
            settings = {key: values[0] for key, values in grid.vary.items()} | grid.set
            proxy = build_config([like_target(large, sweep.grids), settings])
            assert incompatibilities(proxy, large, sweep.value) == []


def test_proxies_have_heads_of_the_targets_dimension(corpus, monkeypatch):
    monkeypatch.chdir(ROOT)
    sweep = load("recipes/experiment/tune.yaml", tuning=True)
    large = target(corpus, model__width=128, model__heads=4)
    found = [trial.config for trial in proxy_trials(sweep, large, 0, 0)]
    assert {proxy.model.head_dim for proxy in found} == {32}
    assert not [text for text in not_transferred(found, large) if "head_dim" in text]
    # 48 divides none of 64, 128 and 256: the heads stay what they are, and all of them are named.
    large = target(corpus, model__width=96, model__heads=2)
    found = [trial.config for trial in proxy_trials(sweep, large, 0, 0)]
    assert {proxy.model.head_dim for proxy in found} == {64}
    assert "model.head_dim is 64 in the proxies, 48 in the target" in not_transferred(found, large)
    found[0].model.head_size = 32
    assert "model.head_dim is 32 or 64 in the proxies, 48 in the target" in not_transferred(found, large)


def test_sp_has_no_base_shape(corpus):
    sp = [target(corpus, recipe__parametrization="sp", recipe__base_width=width) for width in (64, 128)]
    refuse_incompatible(sp, sp[0], "recipe.lr", "")


@pytest.mark.parametrize(("optimum", "grown"), [(-6.6, [-5, -4]), (-11.4, [-14, -13]), (-9, [])])
def test_the_grid_grows_where_a_value_as_good_as_the_best_is_the_last(corpus, tmp_path, monkeypatch, optimum, grown):
    """Nothing is run: the report reads a table whose best values are known."""
    chance = np.random.default_rng(6)
    losses = curves((16, 32), (optimum, optimum), noise=0.004, seeds=3, grid=range(-12, -5), chance=chance)
    found = judged(tmp_path, losses)
    assert {o.edge for finding in found for o in finding.optima} == {0}
    values = set()

    def run(trials, *_):
        values.update(trial.config.recipe.lr for trial in trials)
        return 0

    monkeypatch.setattr(tune, "run_all_trials", run)
    monkeypatch.setattr(tune, "ROUNDS", 2)
    monkeypatch.setattr(tune, "groups_of", lambda *_: found)
    monkeypatch.setattr(tune, "draw", lambda *_: [])
    monkeypatch.setattr("mup_lightning.studies.tune.proxies.against", lambda *_: (0.0, ""))
    file = proxies(tmp_path, vary={"seed": [0]})
    arguments = ["--recipe.lr", str(2**-9), "--sweep", file, "--out", str(tmp_path / "out")]
    assert main(["tune", *options(corpus, *arguments)]) == 0
    assert sorted({math.log2(value) for value in values} - set(range(-12, -5))) == grown


def test_a_second_tune_in_a_folder_comes_back_later(corpus, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sweep_run, "run_trials", lambda trials, *_: sweep_run.Summary(finished=len(trials) - 2))
    arguments = ["--sweep", proxies(tmp_path), "--out", str(tmp_path / "out")]
    assert main(["tune", *options(corpus), *arguments]) == 1
    assert "is not complete: repeat this command once the other process has ended" in capsys.readouterr().out
