"""From sweep files to configurations, and what is refused before anything runs."""

import re
from pathlib import Path

import pytest
import yaml

from mup_lightning.cli.main import main
from mup_lightning.cli.sweep import compose
from mup_lightning.data.shards import Manifest, manifest_hash
from mup_lightning.errors import UserError
from mup_lightning.plan.plan import plan
from mup_lightning.studies.sweep.grid import config_hash, expand, placed, shard
from mup_lightning.studies.sweep.spec import EarlyStop, load, scalar
from tests.conftest import write_corpus
from tests.studies.sweeps import tiny_sweep, write

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def cells_of(tmp_path, content, overrides=None):
    return expand(load(write(tmp_path, content), overrides), compose)


def test_the_cross_product_of_every_grid(corpus, tmp_path):
    content = tiny_sweep(
        corpus,
        grids=[
            {"set": {"recipe.parametrization": "sp"}},
            {"vary": {"recipe.branch_depth": [1, 2], "seed": [7]}, "set": {"model.depth": {"log2": 1}}},
        ],
    )
    found = {
        (c.recipe.parametrization, c.recipe.branch_depth, c.model.depth, c.recipe.lr, c.seed)
        for c in (cell.config for cell in cells_of(tmp_path, content))
    }
    assert found == {("sp", 2, 1, lr, seed) for lr in (2**-8, 2**-6) for seed in (0, 1)} | {
        ("mup", k, 2, lr, 7) for k in (1, 2) for lr in (2**-8, 2**-6)
    }
    wanted = {"recipe.lr", "seed", "recipe.branch_depth", "recipe.parametrization", "model.depth"}
    assert set(cells_of(tmp_path, content)[0].varied) == wanted
    labels = {cell.label for cell in cells_of(tmp_path, content)}
    assert len(labels) == 8
    assert "sp lr=2^-8 seed=0 depth=1" in labels


def test_files_of_a_grid_come_after_those_of_the_sweep(corpus, tmp_path):
    for name, lr in (("first", 0.5), ("second", 0.25)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"recipe": {"lr": lr, "weight_decay": lr}}))
    grids = [{}, {"configs": [str(tmp_path / "second.yaml")]}, {"set": {"recipe.lr": 0.125}}]
    content = tiny_sweep(corpus, configs=[str(tmp_path / "first.yaml")], grids=grids, vary={})
    recipes = [cell.config.recipe for cell in cells_of(tmp_path, content)]
    assert sorted((r.lr, r.weight_decay) for r in recipes) == [(0.125, 0.5), (0.25, 0.25), (0.5, 0.5)]


def test_a_configuration_in_two_grids_is_one_on_two_axes(corpus, tmp_path):
    grids = [{"vary": {"model.width": [16, 32]}}, {"vary": {"model.depth": [1, 2]}}]
    cells = cells_of(tmp_path, tiny_sweep(corpus, grids=grids, vary={}))
    assert {(c.config.model.width, c.config.model.depth): c.axes for c in cells} == {
        (16, 1): ("width", "depth"),
        (32, 1): ("width",),
        (16, 2): ("depth",),
    }
    assert len({cell.hash for cell in cells}) == 3
    assert [cell.work for cell in cells] == sorted((cell.work for cell in cells), reverse=True)


def test_options_win_over_what_the_file_varies(corpus, tmp_path):
    cells = cells_of(tmp_path, tiny_sweep(corpus), {"recipe.lr": 0.5, "trainer.max_steps": 3})
    assert sorted((c.config.recipe.lr, c.config.seed) for c in cells) == [(0.5, 0), (0.5, 1)]
    assert {cell.tokens for cell in cells} == {3 * 8 * 16}


def test_shards_cover_all_and_share_nothing(corpus, tmp_path):
    cells = cells_of(tmp_path, tiny_sweep(corpus, vary={"seed": [0, 1, 2, 3, 4, 5, 6]}))
    parts = [shard(cells, number, 3) for number in (1, 2, 3)]
    assert sorted(cell.hash for part in parts for cell in part) == sorted(cell.hash for cell in cells)
    assert sorted(map(len, parts)) == [2, 2, 3]
    for number, of in ((0, 2), (3, 2)):
        with pytest.raises(UserError, match=rf"--shard is {number}/{of}; expected I/N"):
            shard(cells, number, of)


def test_the_hash_is_of_what_determines_the_numbers(corpus, tmp_path):
    (cell,) = cells_of(tmp_path, tiny_sweep(corpus, vary={}))
    assert cell.corpus == manifest_hash(Manifest.load(corpus))
    assert config_hash(placed(cell.config, "elsewhere", "x"), cell.corpus) == cell.hash
    other = write_corpus(tmp_path / "other", seed=1)
    for key, value in {"data.path": str(other), "seed": 5, "trainer.max_steps": 61, "data.val_tokens": 256}.items():
        (changed,) = cells_of(tmp_path, tiny_sweep(corpus, vary={}), {key: value})
        assert changed.hash != cell.hash, key
    for key, value in {"trainer.log_every": 3, "data.workers": 1, "data.verify": False}.items():
        (same,) = cells_of(tmp_path, tiny_sweep(corpus, vary={}), {key: value})
        assert same.hash == cell.hash, key


def test_memory_is_that_of_the_device_in_use(corpus, tmp_path):
    content = tiny_sweep(corpus, vary={})
    content["sweep"]["set"] |= {"data.batch_size": 8192, "data.micro_batch": 8192}
    (cell,) = cells_of(tmp_path, content)
    cpu, cuda = (plan(cell.config, device=device).memory[0].total for device in ("cpu", "cuda"))
    assert cell.memory == cpu != cuda


def test_peers_differ_in_value_and_seed_alone(corpus, tmp_path):
    grids = [{}, {"set": {"recipe.weight_decay": 0.5}}, {"set": {"model.width": 32}}]
    cells = cells_of(tmp_path, tiny_sweep(corpus, grids=grids))
    assert len(cells) == 12
    assert len({cell.peers for cell in cells}) == 3


def edited(**changes):
    def edit(content):
        sweep = content["sweep"]
        sweep["set"] = {key: value for key, value in sweep["set"].items() if key not in changes.get("vary", {})}
        sweep.update(changes)

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (edited(vari={}), r"unknown key sweep\.vari; did you mean sweep\.vary\?"),
        (lambda c: c.update(swep={}), r"unknown key swep; did you mean sweep\?"),
        (edited(grids=[{"vay": {}}]), r"unknown key sweep\.grids\[0\]\.vay; did you mean sweep\.grids\[0\]\.vary\?"),
        (
            edited(vary={"recipe.lrr": [1]}),
            r"grid 1 at recipe\.lrr 1: unknown option recipe\.lrr; did you mean recipe\.lr",
        ),
        (
            edited(value="recipe.weight_dekay"),
            r"unknown option recipe\.weight_dekay; did you mean recipe\.weight_decay",
        ),
        (edited(vary={"recipe.lr": 0.5}), r"sweep\.vary\.recipe\.lr is 0\.5; expected a list of values, or log2"),
        (
            edited(vary={"recipe.lr": {"log2": "-9..-5"}}),
            r"sweep\.vary\.recipe\.lr has log2 '-9\.\.-5'; expected a num",
        ),
        (edited(vary={"recipe.lr": {"log2": [-9, "x"]}}), r"sweep\.vary\.recipe\.lr has log2 'x'; expected a number"),
        (edited(vary={"recipe.lr": {"log2": 2000}}), r"sweep\.vary\.recipe\.lr has log2 2000; expected a number"),
        (edited(value=["recipe.lr"]), r"sweep\.value is \['recipe\.lr'\]; expected one dotted key"),
        (edited(value="recipe.optimizer"), r"sweep\.value is recipe\.optimizer, which is 'adamw'; expected a number"),
        (edited(value="recipe"), r"sweep\.value is recipe, which is a section; expected a number"),
        (edited(vary={"recipe.lr": []}), r"sweep\.vary\.recipe\.lr is \[\]; expected a list"),
        (edited(grids=[]), r"sweep\.grids is \[\]; expected a list of grids"),
        (edited(axis="width"), r"axis is 'width'; expected one of model\.width, model\.depth, both"),
        (edited(configs="recipes/gpt2.yaml"), r"sweep\.configs is 'recipes/gpt2\.yaml'; expected a list"),
        (edited(configs=["nowhere.yaml"]), r"grid 1 at .*nowhere\.yaml"),
        (edited(vary={"model.width": [16, 67]}), r"grid 1 at model\.width 67: .*no divisor"),
        (edited(vary={"trainer.max_steps": [0]}), r"trainer\.max_steps is 0; expected"),
        (edited(vary={"data.micro_batch": [8, 3]}), r"data\.micro_batch 3.*(multiple|divi)"),
        (edited(vary={"data.path": ["nowhere"]}), r"no prepared corpus at nowhere"),
        (edited(vary={"data.val_tokens": [8]}), r"data\.val_tokens = 8 is less than one window"),
        (edited(vary={"run.resume": ["last"]}), r"run\.resume is set"),
        (edited(vary={"run.name": ["mine"]}), r"run\.name is set, but a sweep's runs have folders of their own; --out"),
        (edited(value="recipe.weight_decay"), r"sweep\.value is recipe\.weight_decay, which is 0 or less in every"),
        (
            edited(grids=[{"set": {"seed": 1}, "vary": {"seed": [2]}}]),
            r"sweep\.grids\[0\] has seed under set and under",
        ),
        (edited(name="../elsewhere"), r"sweep\.name is '\.\./elsewhere'; expected a folder's name"),
        (edited(vary={"trainer.strategy": ["ddp"]}), r"trainer\.strategy is ddp; .*--workers"),
        (edited(early_stop={"after": 60, "worse_than": 1}), r"early_stop\.after is 60, but trainer\.max_steps is 60"),
        (edited(early_stop={"after": True, "worse_than": 1}), r"sweep\.early_stop is .*expected `after`"),
        (edited(early_stop={"after": 5, "worse_than": float("nan")}), r"sweep\.early_stop is .*expected `after`"),
        (edited(keep_runs="false"), r"sweep\.keep_runs is 'false'; expected true or false"),
        (edited(axis=["model.width"]), r"axis is \['model\.width'\]; expected one of"),
        (
            edited(vary={"model.width": [16, 32], "model.depth": [1, 2]}),
            r"sweep crosses several model\.width with several model\.depth, .*add `axis: model\.width`",
        ),
        (edited(early_stop={"after": 5}), r"sweep\.early_stop is .*expected `after`"),
    ],
)
def test_what_is_wrong_is_one_line_before_anything_runs(corpus, tmp_path, edit, message, capsys):
    content = tiny_sweep(corpus)
    edit(content)
    file = write(tmp_path, content)
    with pytest.raises(UserError, match=message):
        expand(load(file), compose)
    assert main(["sweep", str(file), "--out", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {file}: ")
    assert "Traceback" not in printed
    assert not (tmp_path / "out").exists()


def test_a_setting_that_is_no_yaml_is_one_line(corpus, tmp_path, capsys):
    assert main(["sweep", str(write(tmp_path, tiny_sweep(corpus))), "--set", "a=[1"]) == 1
    assert capsys.readouterr().err == (
        "error: --set is 'a=[1'; '[1' is no YAML value: is a bracket or a quotation mark open?\n"
    )


def test_a_cross_of_widths_and_depths_says_which_is_the_size(corpus, tmp_path):
    vary = {"model.width": [16, 32], "model.depth": [1, 2]}
    cells = cells_of(tmp_path, tiny_sweep(corpus, vary=vary, axis="model.depth"))
    assert [cell.axes for cell in cells] == [("depth",)] * 4


def test_numbers_in_scientific_notation_are_numbers(corpus, tmp_path):
    assert scalar("1e-3") == 1e-3
    assert [scalar(text) for text in ("1e", "1.5", "a1e3")] == ["1e", "1.5", "a1e3"]
    assert load(write(tmp_path, tiny_sweep(corpus, early_stop={"after": 5, "worse_than": "5e-1"}))).early_stop == (
        EarlyStop(5, 0.5)
    )
    vary = {"recipe.lr": ["1e-3", "+2.5E-3", 0.5]}  # YAML 1.1 reads 1e-3 as text
    cells = cells_of(tmp_path, tiny_sweep(corpus, vary=vary, grids=[{"set": {"schedule.min_lr": "1e-6"}}]))
    assert sorted(cell.config.recipe.lr for cell in cells) == [1e-3, 2.5e-3, 0.5]
    assert {cell.config.schedule.min_lr for cell in cells} == {1e-6}


@pytest.mark.parametrize("text", ["", "sweep: [", "sweep: 3", b"\xff\xfe\x00"])
def test_files_that_are_no_sweep(tmp_path, text):
    (tmp_path / "sweep.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=r"sweep\.yaml"):
        load(tmp_path / "sweep.yaml")
    with pytest.raises(UserError, match=r"nowhere\.yaml cannot be read"):
        load(tmp_path / "nowhere.yaml")


def test_a_dry_run_lists_and_adds_up(corpus, tmp_path, capsys):
    file = write(tmp_path, tiny_sweep(corpus))
    assert main(["sweep", str(file), "--out", str(tmp_path / "out"), "--dry-run", "--shard", "1/2"]) == 0
    out = capsys.readouterr().out
    assert "2 configurations, 2 left: 15,360 tokens" in out
    assert main(["sweep", str(file), "--out", str(tmp_path / "out"), "--dry-run", "--shard", "9/9"]) == 0
    assert capsys.readouterr().out == "4 configurations, none of them in shard 9/9\n"
    assert not (tmp_path / "out").exists()


SWEEPS = sorted(file for file in (RECIPES / "experiment").glob("*.yaml") if "sweep" in yaml.safe_load(file.read_text()))


@pytest.mark.parametrize("file", SWEEPS, ids=lambda file: file.stem)
def test_the_sweeps_that_ship_compose(file, monkeypatch):
    monkeypatch.chdir(RECIPES.parent)
    sweep = load(file)
    for grid in sweep.grids:
        ends = [{key: values[end] for key, values in grid.vary.items()} for end in (0, -1)]
        for values in ends:
            config = compose(grid.configs, grid.set | values)
            assert config.recipe.lr > 0
    if file.stem == "optimizers":
        names = {compose(grid.configs, {}).recipe.optimizer for grid in sweep.grids}
        assert names == {path.stem for path in (RECIPES / "optimizer").glob("*.yaml")}
        for grid in sweep.grids:  # the recipe's own value is the middle of its grid
            assert compose(grid.configs, {}).recipe.lr in grid.vary["recipe.lr"]


def test_early_stop_is_read(corpus, tmp_path):
    file = write(tmp_path, tiny_sweep(corpus, early_stop={"after": 5, "worse_than": 1}))
    assert load(file).early_stop == EarlyStop(5, 1.0)
    assert load(write(tmp_path, tiny_sweep(corpus))).early_stop is None


def test_the_file_in_the_documentation_is_read(corpus, tmp_path, monkeypatch):
    text = (RECIPES.parent / "docs" / "guide" / "sweeps.md").read_text()
    (tmp_path / "mine.yaml").write_text(text.partition("```yaml\n")[2].partition("```")[0])
    monkeypatch.chdir(RECIPES.parent)
    small = {"data.path": str(corpus), "data.tokenizer": "bytes", "model.context": 16, "data.val_tokens": 512}
    sweep = load(tmp_path / "mine.yaml", small | {"data.batch_size": 8, "data.micro_batch": 8})
    assert {cell.axes for cell in expand(sweep, compose)} == {("width",)}
    assert len(expand(sweep, compose)) == 2 * 3 * 3 * 4
    assert (sweep.early_stop, sweep.keep_runs) == (EarlyStop(100, 0.5), False)
    shipped = set(re.findall(r"`(\w+)`", text.partition("## What ships")[2]))
    assert shipped == {file.stem for file in SWEEPS}
