"""From recipe files, presets and options to one configuration, and the one line that every mistake ends in."""

import re
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from mup_lightning.config.data import VOCABULARIES
from mup_lightning.config.load import build_config, merge, word
from mup_lightning.config.schema import Config
from mup_lightning.errors import UserError
from mup_lightning.files import write_json
from mup_lightning.optim.registry import SECTIONS
from mup_lightning.training.run import plain
from mup_lightning.typed import Raw

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def written(tmp_path, text):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    return file


def test_gpt2_yaml_is_the_defaults():
    content = yaml.safe_load((RECIPES / "gpt2.yaml").read_text())
    defaults = plain({section: vars(rule) for section, rule in SECTIONS.items()})
    assert {section: defaults[section] for section in content["rules"]} == content["rules"]
    unset = {"model": {**asdict(Config().model), "vocab_size": None}, "rules": content["rules"]}
    assert content == plain(asdict(Config())) | unset
    assert build_config([]) == Config()


def test_layers_apply_from_left_to_right(tmp_path):
    file = written(tmp_path, "model: {width: 512, depth: 2}\nseed: 7\n")
    config = build_config([RECIPES / "size/xl.yaml", file, {"model.depth": 8}, {"model": {"tied": False}}])
    model = config.model
    assert (model.width, model.depth, model.context, model.tied, config.seed) == (512, 8, 1024, False, 7)
    assert build_config([{"model.depth": 8}, file]).model.depth == 2


def test_rules_and_numbers_of_all_kinds_come_through(tmp_path):
    file = written(tmp_path, "rules: {muon: {steps: 6}}\nrecipe: {lr: 1e-3}\nschedule: {min_lr: 0}\n")
    config = build_config([file, {"rules.muon.momentum": 0.5}])
    assert (config.recipe.lr, config.schedule.min_lr) == (1e-3, 0.0)
    assert merge([file, {"rules.muon.momentum": 0.5}], [Config])["rules"] == {"muon": {"steps": 6, "momentum": 0.5}}


@pytest.mark.parametrize(("text", "meant"), [("on", "on"), ("off", "off"), ("'off'", "off"), ("auto", "auto")])
def test_on_and_off_are_words_though_yaml_reads_them_as_true_and_false(tmp_path, text, meant):
    file = written(tmp_path, f"trainer: {{compile: {text}, peak_flops: off}}")
    assert build_config([file]).trainer.compile == meant
    assert build_config([file]).trainer.peak_flops == "off"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("recipe:", "mine.yaml: recipe is empty; expected keys"),
        ("model: {width: 3", "mine.yaml is not valid YAML: while parsing a flow mapping at line 1, column 8 "),
        ("# nothing yet", "mine.yaml is empty; expected a recipe: sections such as model"),
        ("[1, 2]", "mine.yaml is [1, 2]; expected a recipe: sections such as model"),
        ("model: {widht: 3}", "mine.yaml: unknown option model.widht; did you mean model.width?"),
        ("model: {width: x}", "mine.yaml: model.width is 'x'; expected a whole number from 1 to 1,000,000"),
        ("model: {bias: maybe}", "mine.yaml: model.bias is 'maybe'; expected true or false"),
        ("model: {dropout: 1}", "mine.yaml: model.dropout is 1; expected a number from 0 to below 1"),
        ("recipe: {lr: .inf}", "mine.yaml: recipe.lr is inf; expected a finite number above 0"),
        ("data: {path: ''}", "mine.yaml: data.path is ''; expected the folder of a prepared corpus"),
        ("run: {name: .}", "mine.yaml: run.name is '.'; expected the name of a folder"),
    ],
)
def test_a_bad_file_is_named_with_its_key_and_what_was_expected(tmp_path, text, message):
    with pytest.raises(UserError, match=re.escape(message)):
        build_config([RECIPES / "gpt2.yaml", written(tmp_path, text)])


EXPERTS = {"model.experts": 4, "model.bias": False}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model.width": 100, "model.heads": 7}, "model.width is 100 and model.heads is 7.*try model.heads 5"),
        ({"model.width": 127}, "model.width is 127, which has no divisor from 8 to 64"),
        (
            {"model.attention_ratio": 1.3},
            "no whole number of channels of queries; the nearest is model.attention_ratio 1.3",
        ),
        ({"model.attention_ratio": 1.5, "model.heads": 7}, "model.attention_ratio 1.5 is 384 and model.heads is 7"),
        ({"model.width": 96, "model.heads": 6, "model.kv_heads": 4}, "does not divide the 6 heads.*2, 3, 6"),
        (
            {"model.width": 96, "model.heads": 2, "model.kv_heads": 4},
            "kv_heads is 4, which does not divide the 2 heads",
        ),
        ({"model.width": 36, "model.heads": 4, "model.position": "rope"}, "position is rope, .* but a head has 9"),
        ({"model.width": 256, "model.head_size": 3}, "no divisor from 3 to 3 .*; choose .* multiple of 3, or"),
        ({"model.qk_gain": True}, "model.qk_gain is true, which does nothing without model.qk_norm; set both, or"),
        ({"model.rope_base": 5e5}, "rope_base is 500000.0, which does nothing without model.position rope"),
        ({"model.experts_per_token": 4}, "experts_per_token is 4, which does nothing without model.experts"),
        ({"model.balance": 0.1}, "model.balance is 0.1, which does nothing without model.experts"),
        ({"model.experts": 1}, "model.experts is 1; expected a whole number from 2 to 1,000,000, or null"),
        ({"model.width": 100, "model.heads": 5, "model.mlp_ratio": 2.667}, "2.667 times model.width 100 .* 2.67$"),
        ({"model.width": 64, "model.mlp_ratio": 0.001}, "no whole number of hidden units"),
        (EXPERTS | {"model.experts_per_token": 5}, "experts_per_token is 5; expected 2 to 4 .model.experts."),
        (EXPERTS | {"model.experts_per_token": 1}, "experts_per_token is 1; expected 2 to 4 .* learn nothing"),
        (EXPERTS | {"model.bias": True}, "model.bias is true, but experts have none"),
        ({"recipe.base.haed.lr": 2}, "unknown option recipe.base.haed; did you mean recipe.base.head"),
        ({"recipe.optimizer": "muon", "recipe.variant": "measured"}, "variant is measured, but muon was measured as"),
        ({"recipe.optimizer": "adamw", "recipe.pure": True}, "pure is true, but adamw updates every parameter anyway"),
        ({"schedule.warmup_steps": 0, "schedule.warmup_tokens": 64}, "is 0 and schedule.warmup_tokens 64; exp"),
        ({"recipe.base_experts": 8}, "recipe.base_experts is 8, but model.experts is null"),
        ({"trainer.devices": 2}, "strategy single runs one process.*set trainer.strategy ddp"),
        ({"trainer.spike_sigmas": 0, "trainer.spike_stop": 3}, "spike_stop is 3, .* trainer.spike_sigmas is 0"),
        ({"trainer.spike_stop": 300}, "spike_stop is 300, which no run can reach: .*spike_window 100"),
        ({"model.vocab_size": 7}, "model.vocab_size is 7, but data.tokenizer gpt2 has 50257 tokens"),
    ],
)
def test_values_that_contradict_each_other_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        build_config([values])


def test_presets_are_files_of_a_subfolder_of_recipes(monkeypatch, tmp_path):
    monkeypatch.chdir(RECIPES.parent)
    assert word("size", "xl") == [Path("recipes/size/xl.yaml")]
    assert word("config", "a.yaml b.yaml") == [Path("a.yaml"), Path("b.yaml")]
    assert word("steps", "5") == [{"trainer.max_steps": "5"}]
    with pytest.raises(UserError, match=r"no recipes/size/xll\.yaml; size can be: base large medium nano small xl$"):
        word("size", "xll")
    (tmp_path / "recipes" / "mine").mkdir(parents=True)
    (tmp_path / "recipes" / "mine" / "first.yaml").touch()
    monkeypatch.chdir(tmp_path)
    assert word("mine", "first") == [Path("recipes/mine/first.yaml")]
    with pytest.raises(UserError, match=rf"presets are looked for in {tmp_path}/recipes$"):
        word("size", "xl")


def test_a_preset_of_blocks_undoes_the_others():
    families = [yaml.safe_load(file.read_text())["model"] for file in (RECIPES / "model").glob("*.yaml")]
    assert all(family.keys() == families[0].keys() for family in families)
    gpt2, mixtral = RECIPES / "model/gpt2.yaml", RECIPES / "model/mixtral.yaml"
    assert build_config([RECIPES / "model/qwen3.yaml", mixtral, gpt2]) == Config()


def test_the_vocabulary_of_a_corpus(tmp_path):
    """tokenizer=corpus takes it from the manifest; a resolved configuration needs no corpus, and no other will do."""
    write_json(
        tmp_path / "manifest.json", {"tokenizer": "mine", "vocab_size": 70_300, "eot": 9, "vocab_hash": "a" * 64}
    )
    asked = {"data.path": str(tmp_path), "data.tokenizer": "corpus"}
    config = build_config([asked])
    assert (config.data.tokenizer, config.model.vocab_size) == (f"mine:{'a' * 64}", 70_300)
    again = Config.from_plain(asdict(config) | {"data": asdict(config.data) | {"path": "nowhere"}})
    assert again.model.vocab_size == 70_300
    assert build_config([asked | {"model.document_mask": True}]).model.end_of_text == 9
    for changes, message in (
        ({"model.vocab_size": 7}, "model.vocab_size is 7, but data.tokenizer mine:a+ has 70300 tokens"),
        ({"data.tokenizer": f"mine:{'b' * 64}"}, f"data.tokenizer is mine:b+, but {tmp_path} was prepared with mine:a"),
        ({"data.path": "nowhere"}, "data.tokenizer is corpus, which is looked up .* none at nowhere: no manifest"),
        ({"data.tokenizer": "gpt3"}, "data.tokenizer is gpt3; expected gpt2, bytes, or corpus"),
    ):
        with pytest.raises(UserError, match=message):
            build_config([asked | {key: Raw(value) for key, value in changes.items()}])
    write_json(
        tmp_path / "manifest.json",
        {"tokenizer": "gpt2", "vocab_size": 50257, "eot": 50256, "vocab_hash": VOCABULARIES["gpt2"].sha256},
    )
    assert build_config([asked]).data.tokenizer == "gpt2"
