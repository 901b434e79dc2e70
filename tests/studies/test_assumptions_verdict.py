"""From measured ratios to verdicts: what holds is said to hold, and a seeded violation is called one."""

import multiprocessing
import signal
import threading
from dataclasses import replace

import numpy as np
import pytest

from mup_lightning.errors import UserError
from mup_lightning.studies.assumptions import quantities, workers
from mup_lightning.studies.assumptions.run import check, tasks_of
from mup_lightning.studies.assumptions.settings import AssumptionSettings
from mup_lightning.studies.assumptions.verdict import cells, overall, positions, sentence
from mup_lightning.studies.assumptions.workers import Task, each

SETTINGS = AssumptionSettings(networks=("mlp",), optimizers=("adamw",))


def runs(ratio, noise=0.01):
    """Runs whose one ratio, in every block, is ratio(depth), but for some noise between seeds and blocks."""
    generator = np.random.default_rng(0)
    result = []
    for depth in SETTINGS.depths:
        for seed in range(SETTINGS.seeds):
            values = (ratio(depth) * np.exp(noise * generator.normal(size=depth))).tolist()
            found = {name: {"first": values, "input": values[:1]} for name in ("weights", "alignment")}
            result.append({"depth": depth, "seed": seed, "times": dict.fromkeys(("start", "middle", "end"), found)})
    return result


def verdict(ratio, assumption="alignment", noise=0.01, settings=SETTINGS):
    judged = cells(runs(ratio, noise), assumption, settings)
    return overall(judged), sentence(assumption, judged, settings), judged


def test_what_is_flat_holds():
    found, words, judged = verdict(lambda L: 20.0)
    assert found == "holds"
    assert words.startswith("holds: ratio between 19.")
    assert len(judged) == 3 * (4 + 1)
    assert {cell.position for cell in judged if cell.matrix == "input"} == {"only"}
    assert all(abs(cell.fit.exponent) < 0.02 for cell in judged)


@pytest.mark.parametrize("exponent", [-0.5, 0.2])
def test_what_vanishes_or_grows_with_depth_does_not_hold(exponent):
    found, words, judged = verdict(lambda L: 20 * (L / 4) ** exponent)
    assert found == "does not hold"
    assert {cell.verdict for cell in judged} == {"does not hold"}
    assert f"steepest exponent {exponent:+.1f}" in words
    assert "exponent beyond ±0.1 in 15 of 15 lines" in words


def test_a_cancellation_that_is_flat_in_depth_does_not_hold_where_the_ratio_should_be_near_one():
    found, words, _ = verdict(lambda L: 0.7, "weights")
    assert found == "does not hold"
    assert "below 0.8 in 15 of 15 lines" in words
    assert "yet no exponent lies beyond ±0.1" in words
    assert verdict(lambda L: 0.7)[0] == "holds"
    assert verdict(lambda L: 0.7, "weights", settings=replace(SETTINGS, least=0.6))[0] == "holds"


def test_noise_is_unclear():
    found, words, _ = verdict(lambda L: 20.0, noise=0.5)
    assert found == "unclear"
    assert "the interval reaches beyond ±0.1 in" in words


def test_noise_in_single_blocks_alone_does_not_leave_it_unclear():
    """Their lines can refute: what grows in the last block alone is found out."""

    def seeded(last):
        result = runs(lambda L: 20.0)
        for run in result:
            run["times"]["end"]["alignment"]["first"][-1] *= last(run)
        return cells(result, "alignment", SETTINGS)

    noisy = seeded(lambda run: (0.5, 1.0, 2.0)[run["seed"]] ** (run["depth"] == 64))
    assert {cell.position for cell in noisy if cell.verdict == "unclear"} == {"last"}
    assert overall(noisy) == "holds"
    assert overall(seeded(lambda run: run["depth"] ** 0.5)) == "does not hold"


def test_attention_s_averaging_is_measured_but_not_judged():
    result = runs(lambda L: 1.0)
    for run in result:
        blocks = {"value": [1 / run["depth"]] * run["depth"], "up": [0.5] * run["depth"]}
        run["times"] = {time: {"activation": blocks} for time in ("start", "middle", "end")}
    judged = cells(result, "activation", SETTINGS)
    assert {cell.verdict for cell in judged if cell.matrix == "value"} == {"not judged"}
    assert overall(judged) == "holds"
    assert "ratio between 0.50 and 0.50" in sentence("activation", judged, SETTINGS)


def test_positions():
    assert positions([1.0, 2.0, 3.0, 6.0], True) == {"first": 1.0, "middle": 3.0, "last": 6.0, "mean": 3.0}
    assert positions([5.0], False) == {"only": 5.0}


def tiny(**changes):
    return AssumptionSettings(
        **({"networks": ("mlp",), "depths": (2, 4, 8), "width": 16, "seeds": 2, "steps": 6, "batch": 8} | changes)
    )


def by_name(result):
    return {found["assumption"]: found["verdict"] for found in result["verdicts"]}


def test_a_network_that_violates_an_assumption_is_found_out(monkeypatch):
    """Seeded: samples whose gradients cancel more and more, the deeper the network is."""
    settings = tiny(depths=(4, 8, 16, 32), width=32, seeds=4, batch=16, optimizers=("sgd",))
    good = by_name(check(settings, 0))
    assert (good["weights"], good["alignment"]) == ("holds", "holds")

    depth = 0
    real_gradients, real_task = quantities.own_gradients, workers._do

    def cancelling(*inputs, **options):
        gradients = real_gradients(*inputs, **options)
        return gradients - (1 - 2 / depth) * gradients.mean(0)

    def watched(task, settings):
        nonlocal depth
        depth = task.depth
        return real_task(task, settings)

    monkeypatch.setattr(quantities, "own_gradients", cancelling)
    monkeypatch.setattr(workers, "_do", watched)
    bad = by_name(check(settings, 0))
    assert (bad["weights"], bad["alignment"]) == ("holds", "does not hold")


def test_steps_that_turn_weights_round_are_found_out(monkeypatch):
    """Seeded: a learning rate with which a step is larger than its weight."""
    from mup_lightning.studies.assumptions import settings as shipped

    monkeypatch.setitem(shipped.BASE_LR["mlp"], "sgd", 3.0)
    result = check(tiny(optimizers=("sgd",), warmup=0, steps=2), 0)
    assert by_name(result)["weights"] == "does not hold"


def test_tasks_are_begun_with_the_longest_and_every_one_is_told_of():
    settings = tiny(networks=("mlp", "gpt2"), optimizers=("adamw", "sgd"))
    tasks = tasks_of(settings)
    assert len(tasks) == len(set(tasks)) == 2 * 2 * 3 * 2
    assert tasks[0].network == "gpt2"
    assert tasks[0].depth == 8
    told = []
    result = check(tiny(steps=2, optimizers=("adamw",)), 0, told.append)
    assert len(told) == len(result["runs"]) == 6
    assert [(run["depth"], run["seed"]) for run in result["runs"]] == [(L, s) for L in (2, 4, 8) for s in (0, 1)]


def test_worker_processes_measure_the_same(corpus):
    settings = tiny(steps=2)
    tasks = [Task("mlp", "adamw", 2, 0), Task("mlp", "adamw", 4, 1)]
    assert dict(each(tasks, settings, 2)) == dict(each(tasks, settings, 0))
    wrong = Task("gpt2", "adamw", 2, 0)
    with pytest.raises(UserError, match="nowhere"):
        list(each([wrong], replace(settings, data="nowhere"), 1))


def test_a_check_that_is_left_early_ends_its_workers():
    """As Ctrl-C leaves it: what a worker is at would take many minutes."""
    long = tiny(steps=2_000_000)
    others = set(multiprocessing.active_children())
    busy = each([Task("mlp", "adamw", 2, 0)], long, 1)
    interrupt = threading.Timer(6, signal.pthread_kill, (threading.get_ident(), signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    interrupt.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            next(busy)
    finally:
        signal.signal(signal.SIGINT, before)
    mine = set(multiprocessing.active_children()) - others
    for child in mine:
        child.join(5)
    still = [child for child in mine if child.is_alive()]
    for child in still:
        child.kill()
    assert still == []


def test_a_divergence_is_said(monkeypatch):
    from mup_lightning.studies.assumptions import settings as shipped

    monkeypatch.setitem(shipped.BASE_LR["mlp"], "sgd", 1e30)
    with pytest.raises(UserError, match=r"sgd diverged in step \d+ of a mlp of width 16 and depth 2 \(seed 0\)"):
        list(each([Task("mlp", "sgd", 2, 0)], tiny(), 0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depths": (4, 8)}, "--depths is 4,8; expected at least three"),
        ({"depths": (8, 4, 16)}, "--depths is 8,4,16"),
        ({"seeds": 1}, "--seeds is 1; expected a whole number of at least 2"),
        ({"steps": 1}, "--steps is 1"),
        ({"warmup": 6}, "--warmup is 6; expected 0 or more, and fewer than the 6 --steps"),
        ({"width": 4}, "--width is 4"),
        ({"optimizers": ("soap",)}, "soap cannot be checked: its first step changes nothing"),
        ({"optimizers": ("adam",)}, "--optimizer is 'adam'; expected one or more of muon_kimi"),
        ({"optimizers": ()}, "--optimizer is empty"),
        ({"least": 1.5}, "--least is 1.5"),
        ({"tolerance": 0.0}, "--tolerance is 0"),
    ],
)
def test_settings_are_checked(change, message):
    with pytest.raises(UserError, match=message):
        tiny(**change)
