"""The optimizers' case of the benchmark: equal work, the clock, the arithmetic, the memory of a step."""

import importlib.util
import json
from dataclasses import asdict, replace

import pytest
import torch

from mup_lightning.optim import newton_schulz
from mup_lightning.optim.optimizer import RULES
from tests.benchmarks import optimizer_contenders, optimizer_memory, optimizers
from tests.benchmarks.memory import reset_peak
from tests.benchmarks.process import measure

OPTIMIZERS = replace(optimizers.QUICK, width=16, context=8)
COMPARISONS = {comparison.name: comparison for comparison in optimizers.COMPARISONS}


def moves(contender, steps):
    """How far its steps moved every parameter."""
    before = [parameter.detach().clone() for parameter in contender.parameters]
    contender.seconds(steps)
    return [parameter.detach() - old for parameter, old in zip(contender.parameters, before, strict=True)]


# Steps, and how far the directions may lie apart. Only Shampoo's first step is the same rule everywhere; torch's Muon
# rounds to bfloat16; and SOAP brings the rounding of small differences to the size of 1.
ALIKE = {"AdamW": (3, 1e-4), "Shampoo": (1, 2e-3), "SOAP": (3, 1e-2), "Muon": (3, 4e-2)}


@pytest.mark.parametrize("name", COMPARISONS)
def test_contenders_do_the_same_work(name):
    """Matrix by matrix and up to a factor: libraries scale by other learning rates, and by corrections of averages.

    SOAP on square matrices alone: the eigenvectors of a singular matrix are whatever the rounding makes them.
    """
    comparison = COMPARISONS[name]
    kind = name.split(",")[0].split()[0]
    steps, bound = ALIKE[kind]
    made = optimizers.contenders(replace(comparison, shapes="square") if kind == "SOAP" else comparison, OPTIMIZERS)
    ours = torch.cat([move.flatten() for move in moves(made[optimizers.OURS][0], steps)])
    for other in comparison.others:
        theirs = moves(made[other][0], steps)
        own = ours.split([move.numel() for move in theirs])  # of a fused QKV, one after the other
        for one, move in zip(own, theirs, strict=True):
            assert (one / one.norm() - move.flatten() / move.norm()).norm() < bound, (other, move.shape)


def test_the_plain_iteration_is_our_newton_schulz():
    w = torch.randn(8, 24, dtype=torch.float64)
    wanted = newton_schulz.orthogonalise(w.clone()[None], 5, optimizer_contenders.COEFFICIENTS, torch.float64)[0]
    assert (optimizer_contenders.newton_schulz(w) - wanted).abs().max() < 1e-12
    assert (optimizer_contenders.newton_schulz(w.mT) - wanted.mT).abs().max() < 1e-12


def test_contenders_step_the_parameters_that_they_should():
    shapes = {
        name: {
            tuple(parameter.shape) for parameter in optimizers.contenders(comparison, OPTIMIZERS)["ours"][0].parameters
        }
        for name, comparison in COMPARISONS.items()
    }
    assert shapes["Muon, square matrices"] == {(48, 16), (16, 16)}  # the first is a fused QKV
    assert shapes["Muon, 1:4 matrices"] == {(64, 16), (16, 64)}
    assert shapes["SOAP, hidden matrices"] == shapes["Muon, square matrices"] | shapes["Muon, 1:4 matrices"]
    assert {(256, 16), (16,)} < shapes["AdamW, all parameters"]
    theirs = optimizers.contenders(COMPARISONS["Muon, square matrices"], OPTIMIZERS)["plain"][0]
    assert [tuple(parameter.shape) for parameter in theirs.parameters] == [(16, 16)] * 4


def test_only_the_step_is_on_the_clock(monkeypatch):
    contender = optimizer_contenders.Workload(OPTIMIZERS).ours("adamw")
    now = iter([0.0, 1.0, 10.0, 13.0])
    monkeypatch.setattr(optimizer_contenders.time, "perf_counter", lambda: next(now))
    assert contender.seconds(2) == 2.0


def test_optimizer_turns():
    found = optimizers.take_turn("SOAP, hidden matrices", asdict(OPTIMIZERS))
    assert found["milliseconds"].keys() == {"ours", "pytorch_optimizer SOAP", "ours again"}
    found = optimizers.take_turn(optimizers.ALL_RULES, asdict(OPTIMIZERS))
    assert found["milliseconds"].keys() == set(RULES)
    assert min(found["milliseconds"].values()) > 0
    json.dumps(found)


def test_optimizer_figures():
    comparison = optimizers.Comparison("a rule", "muon", {"theirs": (1, "at most 1")}, steps=1)
    turns = [
        {"a rule": {"ours": 2.0, "theirs": 4.0, "ours again": 1.0}, "all rules": {"adamw": 2.0, "lion": 3.0}},
        {"a rule": {"ours": 3.0, "theirs": 4.0, "ours again": 3.0}, "all rules": {"adamw": 1.0, "lion": 3.0}},
    ]
    own, whole = optimizers.quantities(turns, [comparison])
    assert [(found.name, found.aim, found.spread.values) for found in own.ratios] == [
        ("ours / theirs", "at most 1", [0.5, 0.75]),
        ("ours / ours again", "", [2.0, 1.0]),
    ]
    assert [(found.name, found.spread.values) for found in whole.ratios] == [("lion / adamw", [1.5, 3.0])]


def test_memory_of_a_step():
    """Lion keeps one momentum, and makes a megabyte of a direction at a time, however large the embedding is."""
    settings = asdict(replace(OPTIMIZERS, width=64, depth=1, tokenizer="gpt2"))
    mapped = optimizer_memory.MAPPED
    found = measure(optimizer_memory.FUNCTION, {"rule": "lion", "settings": settings}, threads=1, environment=mapped)
    assert found["state"] == found["parameters"]
    assert found["buffer"] == 4 * 50304 * 64
    # one and the same step was measured at 0.83 to 1.05 MB; a whole direction would be 12.9 MB
    assert not reset_peak() or found["extra"] == pytest.approx(1 << 20, rel=0.4)
    state, extra = optimizer_memory.quantities({"lion": {"parameters": 8, "state": 16, "extra": 2, "buffer": 4}})
    assert (state.measured["lion"].median, extra.measured["lion"].median) == (2.0, 0.25)
    assert extra.aims == {"lion": "state + one buffer, 0.500"}


@pytest.mark.parametrize(
    ("rule", "shapes", "wanted"),
    [
        ("sgd", [(24, 32), (8, 64)], 0),
        ("lion", [(512,), (8,)], 4 * 512),
        ("muon", [(24, 32), (8, 32), (8, 64)], 4 * (3 + 1) * 8 * 32),  # Q, K, V and a second parameter of their shape
        ("soap", [(24, 32), (8, 64)], 4 * 64**2),
        ("shampoo", [(24, 64), (8, 64)], 8 * 3 * 64**2),  # of Q, K and V at once; decomposed in float64
    ],
)
def test_one_buffer(rule, shapes, wanted):
    """Parameters of 24 rows are three blocks."""
    blocks = [3 if shape[0] == 24 else 1 for shape in shapes]
    group = {"rule": rule, "params": [torch.zeros(shape) for shape in shapes], "blocks": blocks}
    assert (
        optimizer_memory.buffer(rule, [group, group | {"rule": "another", "params": [torch.zeros(9999, 1)]}]) == wanted
    )


def test_without_the_library_the_rest_is_measured(monkeypatch):
    names, said = [], []

    def turn(function, arguments, threads, environment=None):
        if function == optimizer_memory.FUNCTION:
            return {"parameters": 1, "state": 1, "extra": 1, "buffer": 1}
        names.append(arguments["name"])
        others = COMPARISONS[names[-1]].others if names[-1] in COMPARISONS else {"adamw": 1}
        return {"milliseconds": dict.fromkeys(["ours", *others, "ours again"], 1.0), "others": 0.0}

    monkeypatch.setattr(optimizers, "measure", turn)
    monkeypatch.setattr(optimizer_memory, "measure", turn)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    optimizers.run(replace(OPTIMIZERS, rounds=1), said.append)
    assert said[0].endswith("to have it, pip install -c constraints.txt pytorch_optimizer==4.1.0")
    assert names == [*(name for name in COMPARISONS if name[:4] not in ("Sham", "SOAP")), "all rules"]
