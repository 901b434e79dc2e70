"""Structure and arithmetic of the benchmark. No test here looks at how long anything took."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from mup_lightning.data.shards import TokenStore
from tests.benchmarks import bare, depth, feature_norms, ours, result, spectral_norms, trainer
from tests.benchmarks.clock import StepClock
from tests.benchmarks.corpus import write_corpus
from tests.benchmarks.memory import peak_mb, reset_peak, resident_mb

TINY = replace(trainer.QUICK, width=16, depth=1, context=8, rounds=2, steps=2, warmup=1)


def turn(seconds, peak=100.0, imports=40.0, others=0.0):
    return {
        "step_seconds": seconds,
        "peak_mb": peak,
        "imports_mb": imports,
        "whole_run_peak_mb": peak + 1,
        "others": others,
    }


@pytest.fixture(autouse=True)
def _restore_environment(monkeypatch):
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "1")  # a turn sets it for its process, which here is the tests'


@pytest.fixture
def corpus(tmp_path):
    write_corpus(tmp_path / "corpus", "bytes", train=400, validation=40)
    return tmp_path / "corpus"


def test_ratios_are_taken_round_by_round():
    rounds = {"a": [2.0, 6.0, 30.0], "b": [1.0, 2.0, 5.0]}
    found = result.ratio("a", "b", rounds, "at least 1")
    assert (found.name, found.aim) == ("a / b", "at least 1")
    assert asdict(found.spread) == {"median": 3.0, "lowest": 2.0, "highest": 6.0, "values": [2.0, 3.0, 6.0]}


def test_a_missing_value_is_no_ratio():
    with pytest.raises(ValueError, match="zip"):
        result.ratio("a", "b", {"a": [1.0, 2.0], "b": [1.0]})


def test_trainer_figures():
    rounds = [
        {
            trainer.OURS: turn([0.5, 1.5], peak=100),
            trainer.BARE: turn([2.0, 2.0], peak=200),
            trainer.AGAIN: turn([1.0, 1.0], peak=100),
        },
        {
            trainer.OURS: turn([1.0, 1.0], peak=120),
            trainer.BARE: turn([4.0, 4.0], peak=400),
            trainer.AGAIN: turn([0.5, 0.5], peak=60, imports=20),
        },
    ]
    settings = replace(TINY, batch=2, context=8)
    by_name = {quantity.name: quantity for quantity in trainer.quantities(rounds, settings)}

    speed = by_name["speed"]
    assert speed.measured["ours"].values == [16.0, 16.0]  # all steps of a turn count, not only the fast ones
    assert [found.spread.values for found in speed.ratios] == [[2.0, 4.0], [1.0, 0.5]]
    assert by_name["speed in the fastest step"].measured["ours"].values == [32.0, 16.0]
    assert by_name["peak memory"].ratios[0].spread.values == [0.5, 0.3]
    assert by_name["peak memory above imports"].measured["ours again"].values == [60.0, 40.0]
    assert by_name["peak memory with final save"].measured == {"ours": result.spread([101.0, 121.0])}


def test_time_of_a_further_layer_leaves_out_what_does_not_depend_on_depth():
    settings = replace(depth.DEFAULT, depth=11, shallow=3)
    names = settings.names
    assert names == ("L = 11", "L = 3", "L = 3 again")
    # 5 ms beside the blocks and 4 in the first; a further layer takes 2 ms in the deep model, 6 in the shallow one.
    milliseconds = {"L = 11": 29.0, "L = 3": 21.0, "L = 3 again": 15.0, depth.ONE: 9.0}
    assert depth.per_layer(milliseconds, settings) == {"L = 11": 29 / 11, "L = 3": 7.0, "L = 3 again": 5.0}
    assert depth.further_layer(milliseconds, settings) == {"L = 11": 2.0, "L = 3": 6.0, "L = 3 again": 3.0}
    _, layers, further, _ = depth.quantities([{"milliseconds": milliseconds, "others": 0.0}], settings)
    assert [(found.name, found.aim) for found in layers.ratios] == [
        ("L = 11 / L = 3", "at most 1"),
        ("L = 3 / L = 3 again", ""),
    ]
    assert [found.spread.median for found in further.ratios] == [2 / 6, 2.0]


def test_depth_turn():
    settings = replace(depth.QUICK, width=16, context=8, depth=4, shallow=2, steps=1)
    found = depth.take_turn(asdict(settings))
    assert found["milliseconds"].keys() == {*settings.names, depth.ONE}
    assert min(found["milliseconds"].values()) > 0
    json.dumps(found)


def test_cost_of_feature_norms():
    # Groups of (measured, plain, plain again); the middle group was disturbed.
    seconds = [1.5, 1.0, 1.1, 9.0, 1.0, 5.0, 3.0, 2.0, 2.2]
    assert feature_norms.kinds(seconds)[feature_norms.WITHOUT] == [1.0, 1.0, 2.0]
    found = feature_norms.costs(seconds, every=50)
    assert found[feature_norms.WITH] == pytest.approx(1.0)  # half a step in 50 steps
    assert found[feature_norms.AGAIN] == pytest.approx(0.2)
    cost = feature_norms.quantities([turn(seconds), turn(seconds)], every=50)[1]
    assert cost.measured[feature_norms.WITH].median == pytest.approx(1.0)
    assert cost.aims == {feature_norms.WITH: "at most 0.5"}


def test_cost_of_spectral_norms():
    seconds = [1.5, 1.0, 1.1, 9.0, 1.0, 5.0, 3.0, 2.0, 2.2]
    steps, cost, _ = spectral_norms.quantities("(8, 2)", [turn(seconds), turn(seconds)], every=100)
    assert cost.measured[spectral_norms.WITH].median == pytest.approx(0.5)  # half a step in 100 steps
    assert cost.measured["without again"].median == pytest.approx(0.1)
    assert cost.aims == {spectral_norms.WITH: "at most 1"}
    assert steps.measured[spectral_norms.WITH].median == 3000


def test_the_clock_counts_whole_steps_of_any_optimizer():
    weight = torch.zeros(1, requires_grad=True)
    weight.grad = torch.ones(1)
    optimizer = torch.optim.SGD([weight])
    with StepClock(warmup=2, steps=3) as clock:
        for _ in range(6):
            optimizer.step()
    assert len(clock.seconds) == 3
    assert clock.peak > 0
    seconds = clock.seconds
    optimizer.step()  # outside: not counted
    assert clock.seconds == seconds


def test_the_clock_refuses_a_run_that_was_too_short():
    with StepClock(warmup=1, steps=3) as clock:
        pass
    with pytest.raises(RuntimeError, match="0 steps were run; 5 are needed"):
        _ = clock.seconds


def test_corpus_is_a_real_one(corpus):
    store = TokenStore.open(corpus, "train", verify=True)
    assert len(store) == 400
    assert len(TokenStore.open(corpus, "val", verify=True)) == 40
    assert np.unique(store.windows([0], 400)[0]).size > 100


def test_our_trainer_and_the_bare_loop_run_the_same_steps(corpus):
    us = ours.train(str(corpus), asdict(TINY))
    them = bare.train(str(corpus / "train-00000.bin"), asdict(TINY))
    assert len(us["step_seconds"]) == len(them["step_seconds"]) == TINY.steps
    assert us.keys() - them.keys() == {"whole_run_peak_mb"}
    assert us["whole_run_peak_mb"] >= us["peak_mb"] > 0
    json.dumps([us, them])


def test_our_run_keeps_the_default_intervals(tmp_path):
    config = ours.make_config(trainer.DEFAULT, "corpus", str(tmp_path))
    assert (config.trainer.log_every, config.trainer.feature_norms_every) == (10, 50)
    assert config.model.padded_vocab == 50304
    assert (config.model.width, config.model.depth, trainer.DEFAULT.tokens) == (256, 4, 8 * 256)


def test_memory_is_told():
    assert 0 < resident_mb() <= peak_mb()
    block = torch.zeros(30_000_000)
    before = peak_mb()
    del block
    assert peak_mb() == pytest.approx(before, rel=0.01)
    assert not reset_peak() or peak_mb() < before - 100
