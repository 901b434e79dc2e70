"""From measured ratios to verdicts: what holds passes, and a seeded violation fails."""

from dataclasses import replace

import numpy as np
import pytest

from mup_lightning.errors import UserError
from mup_lightning.studies.assumptions import measure as measuring
from mup_lightning.studies.assumptions import run as running
from mup_lightning.studies.assumptions.run import check, trainings
from mup_lightning.studies.assumptions.settings import TIMES, AssumptionSettings
from mup_lightning.studies.assumptions.verdict import Run, conclude, positions

SETTINGS = AssumptionSettings(network="mlp", optimizer=["adamw"])


def runs(ratio, noise=0.01, assumption="alignment"):
    """Runs whose ratio, in every block, is ratio(depth), but for some noise between seeds and blocks."""
    generator = np.random.default_rng(0)
    result = []
    for depth in SETTINGS.depths:
        for seed in range(SETTINGS.seeds):
            values = (ratio(depth) * np.exp(noise * generator.normal(size=depth))).tolist()
            times = {time: {assumption: {"first": list(values), "input": values[:1]}} for time in TIMES}
            result.append(Run("mlp", "adamw", depth, seed, [], times))
    return result


def verdict(ratio, assumption="alignment", noise=0.01, settings=SETTINGS):
    return conclude(runs(ratio, noise, assumption), assumption, settings)


def test_what_is_flat_passes():
    found = verdict(lambda L: 20.0)
    assert found.verdict == "PASS"
    assert found.sentence.startswith("PASS: ratio between 19.")
    assert len(found.lines) == 3 * (4 + 1)
    assert {line.position for line in found.lines if line.matrix == "input"} == {"only"}
    assert all(abs(line.fit.exponent) < 0.02 for line in found.lines)


@pytest.mark.parametrize("exponent", [-0.5, 0.2])
def test_what_vanishes_or_grows_with_depth_fails(exponent):
    found = verdict(lambda L: 20 * (L / 4) ** exponent)
    assert {found.verdict, *(line.verdict for line in found.lines)} == {"FAIL"}
    assert f"steepest exponent {exponent:+.1f}" in found.sentence
    assert "exponent beyond ±0.1 in 15 of 15 lines" in found.sentence


def test_a_flat_cancellation_fails_where_the_ratio_should_be_near_one():
    found = verdict(lambda L: 0.7, "weights")
    assert found.verdict == "FAIL"
    assert "below 0.8 in 15 of 15 lines" in found.sentence
    assert "yet no exponent lies beyond ±0.1" in found.sentence
    assert verdict(lambda L: 0.7).verdict == "PASS"
    assert verdict(lambda L: 0.7, "weights", settings=replace(SETTINGS, least=0.6)).verdict == "PASS"


def test_noise_is_unclear():
    found = verdict(lambda L: 20.0, noise=0.5)
    assert found.verdict == "UNCLEAR"
    assert "the interval reaches beyond ±0.1 in" in found.sentence


def test_noise_in_single_blocks_does_not_leave_it_unclear_but_their_growth_fails():
    def seeded(last):
        result = runs(lambda L: 20.0)
        for run in result:
            run.times["end"]["alignment"]["first"][-1] *= last(run)
        return conclude(result, "alignment", SETTINGS)

    noisy = seeded(lambda run: (0.5, 1.0, 2.0)[run.seed] ** (run.depth == 64))
    assert {line.position for line in noisy.lines if line.verdict == "UNCLEAR"} == {"last"}
    assert noisy.verdict == "PASS"
    assert seeded(lambda run: run.depth**0.5).verdict == "FAIL"


def test_attention_s_averaging_is_measured_but_not_judged():
    result = runs(lambda L: 1.0, assumption="activation")
    for run in result:
        for ratios in run.times.values():
            ratios["activation"] = {"value": [1 / run.depth] * run.depth, "up": [0.5] * run.depth}
    found = conclude(result, "activation", SETTINGS)
    assert {line.verdict for line in found.lines if line.matrix == "value"} == {None}
    assert found.verdict == "PASS"
    assert "ratio between 0.50 and 0.50" in found.sentence


def test_positions():
    assert positions([1.0, 2.0, 3.0, 6.0]) == {"first": 1.0, "middle": 3.0, "last": 6.0, "mean": 3.0}
    assert positions([5.0]) == {"only": 5.0}


def tiny(**changes):
    values = {"network": "mlp", "depths": [2, 4, 8], "width": 16, "seeds": 2, "steps": 6, "batch": 8, "workers": 0}
    return AssumptionSettings(**values | changes)


def by_name(result):
    return {found.assumption: found.verdict for found in result.findings}


def test_a_network_that_violates_an_assumption_is_found_out(monkeypatch):
    """Seeded: samples whose gradients cancel more and more, the deeper the network is."""
    settings = tiny(depths=[4, 8, 16, 32], width=32, seeds=4, batch=16, optimizer=["sgd"])
    good = by_name(check(settings))
    assert (good["weights"], good["alignment"]) == ("PASS", "PASS")

    depth = 0
    real_gradients, real_measure = measuring.own_gradients, measuring.measure

    def cancelling(*inputs, **options):
        gradients = real_gradients(*inputs, **options)
        return gradients - (1 - 2 / depth) * gradients.mean(0)

    def watched(training):
        nonlocal depth
        depth = training.config.model.depth
        return real_measure(training)

    monkeypatch.setattr(measuring, "own_gradients", cancelling)
    monkeypatch.setattr(running, "measure", watched)
    bad = by_name(check(settings))
    assert (bad["weights"], bad["alignment"]) == ("PASS", "FAIL")


@pytest.fixture
def rate(tmp_path):
    """rate(lr): a file that gives SGD this learning rate."""

    def write(lr):
        (tmp_path / "rates.yaml").write_text(f"mlp: {{sgd: {lr}}}\ngpt2: {{}}\n")
        return str(tmp_path / "rates.yaml")

    return write


def test_steps_that_turn_weights_round_are_found_out(rate):
    """Seeded: a learning rate with which a step is larger than its weight."""
    result = check(tiny(optimizer=["sgd"], warmup=0, steps=2, rates=rate("3.0")))
    assert by_name(result)["weights"] == "FAIL"
    assert result.base_lr == {"mlp": {"sgd": 3.0}}


def test_a_divergence_is_said(rate):
    with pytest.raises(UserError, match=r"sgd diverged in step \d+ of a mlp of width 16 and depth 8 \(seed 0\)"):
        check(tiny(optimizer=["sgd"], rates=rate("1.0e+30")))


def test_an_optimizer_without_a_rate_of_its_own_has_that_of_its_recipe(rate):
    assert {one.config.recipe.lr for one in trainings(tiny(optimizer=["adamw"], rates=rate("3.0")))} == {2**-9}


def test_trainings_begin_with_the_longest(corpus):
    found = trainings(tiny(network="both", optimizer=["adamw", "sgd"], data=str(corpus), context=8))
    assert len(found) == 2 * 2 * 3 * 2
    assert (found[0].network, found[0].config.model.depth) == ("gpt2", 8)


def test_worker_processes_measure_the_same():
    settings = tiny(steps=2, optimizer=["adamw"])
    here, there = check(settings), check(replace(settings, workers=2))
    assert [(run.depth, run.seed) for run in here.runs] == [(L, seed) for L in (2, 4, 8) for seed in (0, 1)]
    assert here.runs == there.runs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depths": [4, 8]}, "expected at least three whole numbers"),
        ({"depths": [8, 4, 16]}, r"--depths is \[8, 4, 16\]; expected .* from small to large"),
        ({"seeds": 1}, "--seeds is 1; expected a whole number of at least 2"),
        ({"steps": 1}, "--steps is 1"),
        ({"warmup": 6}, "--warmup is 6; expected fewer steps than the 6 of --steps"),
        ({"optimizer": []}, r"--optimizer is \[\]; expected one or more"),
        ({"least": 1.5}, "--least is 1.5"),
        ({"tolerance": 0.0}, "--tolerance is 0"),
        ({"network": "cnn"}, "--network is 'cnn'; expected one of mlp, gpt2, both"),
    ],
)
def test_settings_are_checked(change, message):
    with pytest.raises(UserError, match=message):
        tiny(**change)
