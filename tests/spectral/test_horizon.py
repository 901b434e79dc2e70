"""The recipe over batch and horizon: laws and their files, and what is refused."""

from dataclasses import asdict, replace

import pytest

from mup_lightning.config.identity import identity
from mup_lightning.config.load import build_config
from mup_lightning.config.schema import Config
from mup_lightning.errors import UserError
from mup_lightning.files import write_json
from mup_lightning.spectral.horizon import AXES, Estimate, Law, read_law
from mup_lightning.spectral.recipe import RecipeConfig

BASE = {"base_batch": 1000, "base_tokens": 100_000}
LAW = Law(
    optimizer="muon_kimi",
    value="recipe.lr",
    exponents={
        **dict.fromkeys(("width", "depth")),
        "tokens": Estimate(-0.375, -0.5, -0.25),
        "batch": Estimate(0.5, 0.4, 0.6),
    },
    ranges={"width": (64, 256), "depth": (4, 4), "tokens": (1e5, 1.6e6), "batch": (1000, 4000)},
    at={"width": 128, "depth": 4, "tokens": 4e5, "batch": 2000},
    source="runs/tune/small",
)


@pytest.fixture
def file(tmp_path):
    write_json(tmp_path / "law.json", asdict(LAW))
    return tmp_path / "law.json"


def test_a_law_comes_back_from_its_file(file):
    assert read_law(file) == LAW


def test_the_configuration_holds_the_law_that_it_was_built_with(file):
    """Also where the file is gone, and until a later layer names the rule anew."""
    config = build_config([{f"recipe.{key}": value for key, value in (BASE | {"time_rule": f"fitted:{file}"}).items()}])
    assert config.recipe.law == LAW
    file.unlink()
    assert Config.from_plain(asdict(config)) == build_config([asdict(config)]) == config
    with pytest.raises(UserError, match="no-such"):
        build_config([asdict(config), {"recipe.time_rule": "fitted:no-such"}])
    sde = build_config([asdict(config), {"recipe.time_rule": "sde"}])
    assert sde.recipe.law is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"time_rule": "sdes"}, "recipe.time_rule is 'sdes'; expected none, sde, or fitted:FILE"),
        ({"time_rule": "fitted:"}, "recipe.time_rule is 'fitted:'; expected none, sde"),
        ({"base_batch": 1000}, "recipe.time_rule is none, for which recipe.base_batch would do nothing"),
        (BASE, "for which recipe.base_batch and recipe.base_tokens would do nothing"),
        ({"tokens": 1}, "recipe.time_rule is none, for which recipe.tokens would do nothing"),
        (BASE | {"time_rule": "sde", "law": LAW}, "recipe.time_rule is sde, for which recipe.law would do nothing"),
        ({"time_rule": "sde", "base_batch": 1000}, "recipe.time_rule is sde, but recipe.base_tokens is null"),
        ({"time_rule": "sde"}, "but recipe.base_batch and recipe.base_tokens is null; give the tokens of a step"),
        ({"time_rule": "fitted:no-such.json"}, r"no-such\.json .*expected a law of the best learning rate"),
        (
            BASE | {"time_rule": "fitted:FILE", "optimizer": "adamw"},
            r"the law of fitted:.* is of recipe\.lr for muon_kimi; expected one of recipe\.lr for adamw",
        ),
        (
            BASE | {"time_rule": "fitted:x", "law": replace(LAW, value="recipe.init_std")},
            r"is of recipe\.init_std for muon_kimi; expected one of recipe\.lr for muon_kimi",
        ),
    ],
)
def test_keys_of_time_that_contradict_each_other_are_refused(file, values, message):
    if values.get("time_rule") == "fitted:FILE":
        values = values | {"time_rule": f"fitted:{file}"}
    with pytest.raises(UserError, match=message):
        RecipeConfig(**values)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "law.json is damaged: .*; expected a law of the best learning rate, as mup-lightning tune writes it"),
        ('{"optimizer": "adamw"}', "law.json: law.value is missing"),
        (
            '{"optimizer": "adamw", "value": "recipe.lr", "exponents": {"time": null}, "ranges": {}, "at": {}, '
            '"source": ""}',
            "law.json: law.exponents has time; expected width, depth, tokens, batch",
        ),
    ],
)
def test_a_damaged_law_is_refused(file, content, message):
    file.write_text(content)
    with pytest.raises(UserError, match=message):
        read_law(file)


def test_the_keys_are_no_part_of_an_older_identity():
    assert not {"time_rule", "base_batch", "base_tokens", "tokens", "law"} & identity(Config())["recipe"].keys()
    assert set(LAW.exponents) == set(AXES)
