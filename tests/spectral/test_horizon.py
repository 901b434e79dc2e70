"""The recipe over batch and horizon: laws and their files, and what is refused."""

from dataclasses import asdict, replace
from fractions import Fraction
from itertools import product

import numpy as np
import pytest

from mup_lightning.config.identity import identity
from mup_lightning.config.load import build_config
from mup_lightning.config.schema import Config
from mup_lightning.errors import UserError
from mup_lightning.files import write_json
from mup_lightning.optim.registry import RULES
from mup_lightning.spectral.base import RecipeConfig
from mup_lightning.spectral.families import FAMILIES
from mup_lightning.spectral.horizon import NONE, SDE, Estimate, Law, read_law
from mup_lightning.spectral.recipe import derive, exponents
from mup_lightning.spectral.roles import Role
from mup_lightning.spectral.scale import B, Scale, T
from mup_lightning.training.module import build_training
from mup_lightning.training.train import before
from tests.optim import test_rules
from tests.optim.test_rules import run

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


def test_the_configuration_holds_the_law_that_it_was_built_with(file):
    """As it was written; also where the file is gone, and until a later layer names the rule anew."""
    config = build_config([{f"recipe.{key}": value for key, value in (BASE | {"time_rule": f"fitted:{file}"}).items()}])
    assert config.recipe.law == LAW
    file.unlink()
    assert Config.from_plain(asdict(config)) == build_config([asdict(config)]) == config
    with pytest.raises(UserError, match="no-such"):
        build_config([asdict(config), {"recipe.time_rule": "fitted:no-such"}])
    assert build_config([asdict(config), {"recipe.time_rule": "sde"}]).recipe.law is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"time_rule": "sdes"}, "recipe.time_rule is 'sdes'; expected none, sde, or fitted:FILE"),
        (BASE, "recipe.time_rule is none, for which recipe.base_batch and recipe.base_tokens would do nothing"),
        (BASE | {"time_rule": "sde", "law": LAW}, "recipe.time_rule is sde, for which recipe.law would do nothing"),
        ({"time_rule": "sde"}, "which needs recipe.base_batch and recipe.base_tokens; give the tokens of a step"),
        (
            {"time_rule": "sde", "base_batch": 1000, "base_tokens": 999},
            r"recipe.base_tokens is 999, less than the 1000 of one step \(recipe.base_batch\); base_tokens are those",
        ),
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


EMPTY = '{"optimizer": "adamw", "value": "recipe.lr", "ranges": {}, "at": {}, "source": "", "exponents": {%s}}'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "law.json is damaged: .*; expected a law of the best learning rate, as mup-lightning tune writes it"),
        ('{"optimizer": "adamw"}', "law.json: law.value is missing"),
        (EMPTY % '"time": null', "law.json: law.exponents has time; expected width, depth, tokens, batch"),
        (EMPTY % '"batch": {"estimate": 11, "low": 0, "high": 0}', "is 11; expected an exponent from -10 to 10"),
    ],
)
def test_a_damaged_law_is_refused(file, content, message):
    file.write_text(content)
    with pytest.raises(UserError, match=message):
        read_law(f"fitted:{file}")


def values(optimizer, batch=1000, tokens=100_000, role=Role.HIDDEN, **recipe):
    """Of a role at the base shape."""
    config = RecipeConfig(optimizer=optimizer, **(BASE | {"time_rule": "sde"} | recipe))
    return derive(config, 256, 4, batch=batch, tokens=tokens).values[role]


RATES = {"sgd": ("1", "-1/2")} | {name: ("1/2", "-1/2") for name in FAMILIES if name != "sgd"}
OPTIONS = {"eps": "-1/2", "rho": "-1/2", "sphere": "0"}
AVERAGES = {
    **{name: {"beta1", "beta2"} for name in ("adamw", "shampoo", "soap")},
    "adan": {"beta1", "beta3"},
    "sophia": {"beta2"},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_exponents_over_time_by_hand(name):
    """What batch and horizon add is the same for every role, and leaves width and depth as they are.

    Decays keep their share of the run, an average over 1/(-log β) steps; only options that the rule has, and that are
    decays.
    """
    batch, tokens = (Fraction(power) for power in RATES[name])
    for role, k in product(Role, (1, 2)):
        found, plain = (exponents(FAMILIES[name], role, k, horizon=horizon) for horizon in (SDE, NONE))
        assert found.lr == plain.lr * Scale(batch=batch, tokens=tokens)
        assert found.lr * found.weight_decay == plain.lr * plain.weight_decay * B / T
        assert (found.multiplier, found.init_var) == (plain.multiplier, plain.init_var)
        for option, scale in found.scaled.items():
            power = Fraction(OPTIONS[option]) * (2 if name == "shampoo" else 1)
            assert scale == plain.scaled[option] * B**power
        assert found.averages == (B / T if AVERAGES.get(name) else None)
    derived = values(name, batch=4000, tokens=1_600_000)
    assert derived.powers == dict.fromkeys(AVERAGES.get(name, ()), 4 / 16)
    assert all(0 < getattr(RULES[name], option) < 1 for option in derived.powers)
    assert derived.gradient == pytest.approx(4**-0.5)


def test_groups_hold_the_derived_decays(tiny):
    """tiny: 10 steps of 8 x 16 tokens; base: 5 steps of 2 x 16."""
    changes = {"recipe.optimizer": "muon_kimi", "recipe.time_rule": "sde", "recipe.base_batch": 32}
    config = tiny(**changes, **{"recipe.base_tokens": 160})
    groups = {group["rule"]: group for group in build_training(config)[1].param_groups}
    power = (128 / 32) / (1280 / 160)
    assert (groups["adamw"]["beta1"], groups["adamw"]["beta2"]) == (0.9**power, 0.95**power)
    assert groups["adamw"]["lr"] == pytest.approx(2**-7 * power**0.5)
    assert groups["muon_kimi"]["momentum"] == 0.95
    assert groups["muon_kimi"]["lr"] == pytest.approx(2**-7 * 2**-0.5 * power**0.5)
    hopeless = replace(config.recipe, base_tokens=10**18, base_batch=10**18)
    config = replace(config, recipe=replace(hopeless, tokens=2**62))
    with pytest.raises(UserError, match=r"beta1 of .* comes out as 1 for so long a run"):
        build_training(config)


def test_a_run_at_the_base_is_that_of_no_rule_to_the_bit(tiny):
    rule = {"recipe.time_rule": "sde", "recipe.base_batch": 128, "recipe.base_tokens": 1280}
    groups = [build_training(tiny(**changes))[1].param_groups for changes in ({}, rule)]
    for ours, theirs in zip(*groups, strict=True):
        assert {**ours, "params": None} == {**theirs, "params": None}


@pytest.mark.parametrize(("rule", "rate"), [("none", 1.0), ("fitted:x", 4**0.5 * 16**-0.375)])
def test_a_fitted_law_scales_the_rate_and_keeps_decay_over_its_share(rule, rate):
    changes = {"law": LAW} if rule != "none" else dict.fromkeys(BASE)
    plain = RecipeConfig(weight_decay=0.1).lr
    found = values("muon_kimi", 4000, 1_600_000, time_rule=rule, weight_decay=0.1, **changes)
    assert found.lr == pytest.approx(plain * rate)
    assert found.lr * found.weight_decay == pytest.approx(plain * 0.1 * (1 if rule == "none" else 4 / 16))
    vectors = values("muon_kimi", 4000, 1_600_000, Role.HIDDEN_BIAS, time_rule=rule, **changes)
    assert vectors.lr == pytest.approx(plain * rate)
    assert (vectors.scaled, vectors.gradient) == ({"eps": 1.0}, 1.0)
    assert set(vectors.powers.values()) == {1.0}


def test_a_law_is_used_along_its_own_axes_alone():
    law = replace(LAW, exponents=LAW.exponents | {"batch": None})
    values("muon_kimi", 1000, 1_600_000, time_rule="fitted:x", law=law)
    with pytest.raises(UserError, match=r"no exponent over batch, but this run's are 4 times those of recipe\.base_b"):
        values("muon_kimi", 4000, 1_600_000, time_rule="fitted:x", law=law)


def timed(**changes):
    """16 x the base's tokens in steps of 4 x."""
    recipe = {"time_rule": "sde"} | BASE | changes
    config = {"model.context": 40, "data.batch_size": 100, "trainer.max_steps": 400}
    return build_config([config | {f"recipe.{key}": value for key, value in recipe.items()}])


def test_the_horizon_in_force_is_part_of_the_identity():
    """So that a run that is lengthened is refused, unless it names the T that it was begun with."""
    assert not {"time_rule", "base_batch", "base_tokens", "tokens", "law"} & identity(Config())["recipe"].keys()
    config = timed()
    longer = replace(config, trainer=replace(config.trainer, max_steps=800))
    assert identity(config)["recipe"]["tokens"] == 1_600_000
    assert identity(longer) != identity(config)
    kept = replace(longer, recipe=replace(config.recipe, tokens=1_600_000))
    assert identity(kept) == identity(config)
    assert kept.derive() == config.derive()


def test_the_identity_holds_a_law_and_not_its_place():
    one, same, other = (
        timed(time_rule=f"fitted:{name}", law=replace(LAW, source=name, exponents=LAW.exponents | {"batch": batch}))
        for name, batch in (("a", Estimate(0.5, 0, 1)), ("b", Estimate(0.5, 0.4, 0.6)), ("a", Estimate(0.6, 0, 1)))
    )
    assert identity(one) == identity(same) != identity(other)


def test_a_run_says_what_its_time_rule_does():
    sde, law = timed(), timed(time_rule="fitted:law.json", law=LAW)
    assert sde.over_time() == [
        "time rule sde, batch 4 x and tokens 16 x the base's: lr x 0.5, weight decay x 0.5",
        "in our own runs the time rule sde lost to none (docs/results/horizon.md); a fitted law is what to use",
    ]
    assert law.over_time()[1:] == []
    far = timed(time_rule="fitted:law.json", law=LAW, tokens=16_000_000)
    assert far.over_time()[1:] == [
        "outside the runs of the law (runs/tune/small): tokens 1.6e+07 is 10 times beyond 100000 to 1.6e+06"
    ]
    assert "time rule sde" in before(sde)
    assert Config().over_time() == []


def diffused(name, found, options, steps, batch):
    """RMS of the weights that a real rule makes of pure noise; those of Muon are 2 x 2 matrices."""
    shape, keys = ((400, 2), {"blocks": 200}) if name == "muon" else ((2000,), {})
    options = options | {key: options[key] * factor for key, factor in found.scaled.items() if key in options}
    options |= {key: options[key] ** power for key, power in found.powers.items()}
    chance = np.random.default_rng(0)
    noise = (chance.standard_normal(shape) / batch**0.5 for _ in range(steps))
    keys |= {"options": options, "lr": found.lr, "weight_decay": found.weight_decay}
    return np.sqrt(np.mean(run(name, np.zeros(shape), noise, **keys)[0] ** 2))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sgd", {"momentum": 0.8}),
        ("adamw", {"beta1": 0.8, "beta2": 0.9, "eps": 0.01}),
        ("lion", {"beta1": 0.6, "beta2": 0.8}),
        ("sophia", {"beta1": 0.8, "beta2": 0.0, "rho": 0.01}),  # the Hessian is 1, whatever the batch
        ("muon", {"momentum": 0.8}),
    ],
)
def test_noise_diffuses_weights_over_the_run_as_far_at_every_batch_and_horizon(monkeypatch, name, options):
    """Of 80 steps at the base; weight decay takes a fifth of the way. Unscaled, 4 times the steps go further."""
    monkeypatch.setattr(test_rules, "hessian", np.ones_like)
    far = []
    for rule, m_B, m_T in (("sde", 1, 1), ("sde", 1, 4), ("sde", 4, 4), ("sde", 0.5, 1), ("none", 1, 4)):
        base = BASE | {"base_tokens": 80_000} if rule == "sde" else dict.fromkeys(BASE)
        tuned = {"time_rule": rule, "lr": 0.01, "weight_decay": 0.25, **base}
        found = values(name, int(1000 * m_B), int(80_000 * m_T), **tuned)
        far.append(diffused(name, found, options, round(80 * m_T / m_B), 1000 * m_B))
    assert far[1:4] == pytest.approx([far[0]] * 3, rel=0.08)
    assert far[4] > 1.4 * far[0]
