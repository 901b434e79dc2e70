"""From sweep files to trials, and what is refused before anything runs."""

import csv
import re
from itertools import product
from pathlib import Path

import pytest
import yaml

from mup_lightning.cli.main import main
from mup_lightning.config.load import build_config
from mup_lightning.data.shards import Manifest, manifest_hash
from mup_lightning.errors import UserError
from mup_lightning.studies.sweep.grid import config_hash, expand
from mup_lightning.studies.sweep.results import rows_of
from mup_lightning.studies.sweep.spec import load
from mup_lightning.training.trainer import resolve
from tests.conftest import write_corpus
from tests.studies.sweeps import tiny_sweep, write

ROOT = Path(__file__).resolve().parents[2]
SWEEPS = sorted(f for f in (ROOT / "recipes/experiment").glob("*.yaml") if "sweep" in yaml.safe_load(f.read_text()))


def trials_of(tmp_path, content, *overrides):
    return expand(load(write(tmp_path, content), overrides))


def test_the_cross_product_of_every_grid(corpus, tmp_path):
    own = {"vary": {"recipe.branch_depth": [1, 2], "seed": [7]}, "set": {"model.depth": {"log2": 1}}}
    trials = trials_of(tmp_path, tiny_sweep(corpus, grids=[{"set": {"recipe.parametrization": "sp"}}, own]))
    found = {
        (c.recipe.parametrization, c.recipe.branch_depth, c.model.depth, c.recipe.lr, c.seed)
        for c in (trial.config for trial in trials)
    }
    assert found == {("sp", 2, 1, lr, seed) for lr in (2**-8, 2**-6) for seed in (0, 1)} | {
        ("mup", k, 2, lr, 7) for k in (1, 2) for lr in (2**-8, 2**-6)
    }
    assert set(trials[0].varied) == {
        "recipe.lr", "seed", "recipe.branch_depth", "recipe.parametrization", "model.depth"
    }  # fmt: skip
    labels = {trial.label for trial in trials}
    assert len(labels) == 8
    assert "sp lr=2^-8 seed=0 depth=1" in labels


def test_files_of_a_grid_come_after_those_of_the_sweep_and_options_win(corpus, tmp_path):
    for name, lr in (("first", 0.5), ("second", 0.25)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"recipe": {"lr": lr, "weight_decay": lr}}))
    grids = [{}, {"configs": [str(tmp_path / "second.yaml")]}, {"set": {"recipe.lr": "1.25e-1"}}]
    content = tiny_sweep(corpus, configs=[str(tmp_path / "first.yaml")], grids=grids, vary={})
    recipes = [trial.config.recipe for trial in trials_of(tmp_path, content)]
    assert sorted((r.lr, r.weight_decay) for r in recipes) == [(0.125, 0.5), (0.25, 0.25), (0.5, 0.5)]
    trials = trials_of(tmp_path, tiny_sweep(corpus), "recipe.lr=0.5", "trainer.max_steps=3")
    assert sorted((t.config.recipe.lr, t.config.seed) for t in trials) == [(0.5, 0), (0.5, 1)]
    assert {trial.checked.tokens for trial in trials} == {3 * 8 * 16}


def test_a_configuration_in_two_grids_is_one_on_two_axes(corpus, tmp_path):
    grids = [{"vary": {"model.width": [16, 32]}}, {"vary": {"model.depth": [1, 2]}}]
    trials = trials_of(tmp_path, tiny_sweep(corpus, grids=grids, vary={}))
    assert {(t.config.model.width, t.config.model.depth): t.axes for t in trials} == {
        (16, 1): ("width", "depth"),
        (32, 1): ("width",),
        (16, 2): ("depth",),
    }
    work = [trial.checked.work for trial in trials]
    assert work == sorted(work, reverse=True)


def test_tokens_and_batch_are_sizes(corpus, tmp_path):
    """Over the tokens the steps vary; over the batch the tokens of a run stay, so the steps vary inversely."""
    grids = [
        {"axis": "tokens", "vary": {"tokens": [3840, 7680]}},
        {"axis": "tokens", "vary": {"trainer.max_steps": [60, 120]}},
        {"axis": "batch", "set": {"tokens": 7680}, "vary": {"data.batch_size": [8, 16]}},
    ]
    trials = trials_of(tmp_path, tiny_sweep(corpus, grids=grids, vary={}))
    assert {(t.config.trainer.max_steps, t.config.data.batch_size): t.axes for t in trials} == {
        (30, 8): ("tokens",), (60, 8): ("tokens", "batch"), (120, 8): ("tokens",), (30, 16): ("batch",)
    }  # fmt: skip
    assert set(trials[0].varied) == {"trainer.max_steps", "data.batch_size"}
    rows = [row for trial in trials for row in rows_of(trial, {})]
    assert sorted((row["axis"], row["size"]) for row in rows) == [
        ("batch", 128), ("batch", 256), ("tokens", 3840), ("tokens", 7680), ("tokens", 15360)
    ]  # fmt: skip
    (trial,) = trials_of(tmp_path, tiny_sweep(corpus, grids=grids[:1], vary={}), "trainer.max_steps=5")
    assert trial.config.trainer.max_steps == 5  # an option wins over what the file says of the length


def test_the_hash_is_of_what_determines_the_numbers(corpus, tmp_path):
    (trial,) = trials_of(tmp_path, tiny_sweep(corpus, vary={}))
    assert trial.checked.corpus == manifest_hash(Manifest.load(corpus))
    other = write_corpus(tmp_path / "other", seed=1)
    different = (f"data.path={other}", "seed=5", "trainer.max_steps=61", "data.val_tokens=256")
    same = ("trainer.log_every=3", "data.workers=1", "data.verify=false", "recipe.base.head.lr=1.0")
    for setting in (*different, *same):
        (changed,) = trials_of(tmp_path, tiny_sweep(corpus, vary={}), setting)
        assert (changed.hash != trial.hash) == (setting in different), setting


@pytest.mark.parametrize("name", ["lr_depth", "lr_depth_adamw_logits", "wd_width"])
def test_published_tables_have_the_hashes_of_their_sweeps(name, monkeypatch):
    """Or their runs would be repeated: hashes must not change with the way that configurations are written."""
    monkeypatch.chdir(ROOT)
    rows = list(csv.DictReader(Path(f"docs/results/{name}.csv").read_text().splitlines()))
    hashes = set()
    for grid in load(f"recipes/experiment/{name}.yaml").grids:
        for values in product(*grid.vary.values()):
            config = build_config([*grid.configs, grid.set | dict(zip(grid.vary, values, strict=True))])
            config.trainer.accelerator = "cpu"
            resolve(config.trainer)
            hashes.add(config_hash(config, rows[0]["corpus"]))
    assert hashes == {row["config_hash"] for row in rows}


REFUSED = [
    ({"vari": {}}, r"unknown option sweep\.vari; did you mean sweep\.vary\?"),
    ({"grids": [{"vay": {}}]}, r"unknown option sweep\.grids\.vay; did you mean sweep\.grids\.vary\?"),
    ({"grids": []}, r"sweep\.grids is \[\]; expected a list of grids"),
    ({"vary": {"recipe.lrr": [1]}}, r"grid 1 at recipe\.lrr 1: unknown option recipe\.lrr; did you mean recipe\.lr"),
    ({"vary": {"recipe.lr": []}}, r"vary\.recipe\.lr is \[\]; expected a list of values, or log2"),
    ({"vary": {"recipe.lr": {"log2": 2000}}}, r"log2 of recipe\.lr is \[2000\]; expected .*exponents between"),
    ({"vary": {"model.width": [16, 67]}}, r"grid 1 at model\.width 67: .*no divisor"),
    ({"vary": {"data.micro_batch": [8, 3]}}, r"data\.micro_batch 3.*(multiple|divi)"),
    ({"vary": {"data.path": ["nowhere"]}}, r"no prepared corpus at nowhere"),
    ({"vary": {"run.name": ["mine"]}}, r"run\.name is set, but the runs of a sweep have folders of their own"),
    ({"vary": {"trainer.strategy": ["ddp"]}}, r"trainer\.strategy is ddp; .*--workers"),
    ({"vary": {"model.width": [16, 32], "model.depth": [1, 2]}}, r"crosses several .*add `axis: model\.width`"),
    ({"grids": [{"set": {"seed": 1}, "vary": {"seed": [2]}}]}, r"seed is both under set and under vary"),
    ({"grids": [{"axis": "batch", "vary": {"data.batch_size": [8, 16]}}]}, r"axis batch needs `tokens` under set"),
    ({"vary": {"tokens": [64]}}, r"tokens and trainer\.max_steps both say how long a run is; expected one of them"),
    ({"grids": [{"vary": {"tokens": [8000]}}]}, r"tokens is 8000; expected a whole multiple .* 8 x model\.context 16"),
    ({"value": "recipe.weight_dekay"}, r"unknown option recipe\.weight_dekay; did you mean recipe\.weight_decay"),
    ({"value": "recipe"}, r"sweep\.value is recipe, which is RecipeConfig.*; expected the key of a number"),
    ({"value": "recipe.weight_decay"}, r"sweep\.value is recipe\.weight_decay, which is 0 or less in every"),
    ({"name": "../elsewhere"}, r"sweep\.name is '\.\./elsewhere'; expected a folder's name"),
    ({"for_tune": True}, r"takes what it does not name from a target; run it by mup-lightning tune sweep="),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_what_is_wrong_is_one_line_before_anything_runs(corpus, tmp_path, changes, message, refused):
    file = write(tmp_path, tiny_sweep(corpus, **changes))
    assert re.match(f"{file}: .*{message}", refused(["sweep", file, "--out", tmp_path / "out"]))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["", "sweep: [", "sweep: 3"])
def test_files_that_are_no_sweep(tmp_path, text):
    (tmp_path / "sweep.yaml").write_text(text)
    with pytest.raises(UserError, match=r"sweep\.yaml"):
        load(tmp_path / "sweep.yaml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "a=[1"], r"--set is 'a=\[1'; expected KEY=VALUE with a YAML value"),
        (["--shard", "3/2"], r"--shard is 3/2; expected I/N with I from 1 to N"),
        (["--out", "/proc/nowhere"], r"/proc/nowhere cannot be made: No such file or directory; name anoth"),
    ],
)
def test_wrong_options_are_one_line(corpus, tmp_path, refused, arguments, message):
    file = write(tmp_path, tiny_sweep(corpus))
    assert re.match(message, refused(["sweep", file, "--out", tmp_path / "out", *arguments]))
    assert not (tmp_path / "out").exists()


def test_a_dry_run_lists_and_adds_up(corpus, tmp_path, capsys):
    file = write(tmp_path, tiny_sweep(corpus))
    for shard, said in (
        ("1/1", "\n4 configurations, 4 left: 30,720 tokens"),
        ("1/3", "\n2 configurations, 2 left: 15,360 tokens"),
        ("3/3", "\n1 configurations, 1 left: 7,680 tokens"),
        ("9/9", "4 configurations, none of them in shard 9/9\n"),
    ):
        assert main(["sweep", str(file), "--out", str(tmp_path / "out"), "--dry-run", "--shard", shard]) == 0
        assert said in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("file", SWEEPS, ids=lambda file: file.stem)
def test_the_sweeps_that_ship_compose(file, monkeypatch):
    monkeypatch.chdir(ROOT)
    sweep = load(file, tuning=True)
    for grid in sweep.grids:
        for end in (0, -1):
            values = grid.set | {key: values[end] for key, values in grid.vary.items()}
            tokens = values.pop("tokens", None)
            config = build_config([*grid.configs, values])
            assert config.recipe.lr > 0
            assert tokens is None or tokens % config.tokens_per_step == 0
    if file.stem == "optimizers":
        recipes = [(build_config(grid.configs).recipe, grid.vary["recipe.lr"]) for grid in sweep.grids]
        assert len({recipe.optimizer for recipe, _ in recipes}) == len(recipes)
        assert all(recipe.lr in values for recipe, values in recipes)


def test_the_file_in_the_documentation_is_read(corpus, tmp_path, monkeypatch):
    text = next(file.read_text() for file in (ROOT / "docs").rglob("sweeps.md"))
    (tmp_path / "mine.yaml").write_text(text.partition("```yaml\n")[2].partition("```")[0])
    monkeypatch.chdir(ROOT)
    small = f"data.path={corpus} data.tokenizer=bytes model.context=16 data.val_tokens=512 data.batch_size=8"
    assert all(grid.vary["seed"] == [0, 1, 2] for grid in load(tmp_path / "mine.yaml").grids)
    trials = expand(load(tmp_path / "mine.yaml", [*small.split(), "data.micro_batch=8", "seed=0"]))
    assert {trial.axes for trial in trials} == {("width",)}
    assert len(trials) == 2 * 3 * 4
    shipped = set(re.findall(r"`(\w+)`", text.partition("## What ships")[2]))
    assert shipped >= {file.stem for file in SWEEPS}
