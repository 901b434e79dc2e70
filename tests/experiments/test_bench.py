"""Structure and arithmetic of the benchmark. No test here looks at how long anything took."""

import importlib.util
import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from mup_lightning.cli import bench as command
from mup_lightning.errors import UserError
from mup_lightning.experiments.bench import (
    bare,
    cases,
    depth,
    feature_norms,
    optimizer_contenders,
    optimizer_memory,
    optimizers,
    ours,
    result,
    rounds,
    spectral_norms,
    strategies,
    strategy_turns,
    table,
    trainer,
)
from mup_lightning.experiments.bench.clock import StepClock
from mup_lightning.experiments.bench.corpus import write_corpus
from mup_lightning.experiments.bench.machine import machine
from mup_lightning.experiments.bench.memory import peak_mb, reset_peak, resident_mb
from mup_lightning.experiments.bench.process import measure, measure_together
from mup_lightning.optim import newton_schulz
from mup_lightning.optim.hybrid import RULES
from mup_lightning.tokens.shards import TokenStore

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
    embedding = 4 * 50304 * 64
    assert found["state"] == found["parameters"]
    assert found["buffer"] == embedding
    # some of the megabyte may be memory that the process has already; a whole direction would be 12.9 MB
    assert not reset_peak() or 1 << 19 < found["extra"] < 1 << 21 < embedding / 4
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


def test_strategy_figures():
    contenders = [*strategies.STRATEGIES, strategies.AGAIN]
    times = dict(zip(contenders, [2.0, 2.0, 3.0, 4.0, 5.0, 2.2], strict=True))
    matrices = {"shared": 2.0, "replicated": 3.0, "shared again": 1.0}
    found = strategies.quantities([{"adamw": times, "adamw, processor": times, "matrices": matrices}], ["adamw"])
    assert [quantity.name for quantity in found] == [
        "a step, adamw",
        "processor time of a step, adamw",
        "optimizer's step, hidden matrices",
    ]
    assert [(ratio.name, ratio.aim, ratio.spread.median) for ratio in found[0].ratios] == [
        ("zero0 / ddp", "at most 1.05", 1.0),
        ("zero1 / ddp", "at most 1.15", 1.5),
        ("zero2 / ddp", "at most 1.15", 2.0),
        ("zero3 / ddp", "at most 1.15", 2.5),
        ("ddp again / ddp", "", 1.1),
    ]
    assert [ratio.spread.median for ratio in found[2].ratios] == [1.5, 0.5]


def test_strategies_share_the_batch(corpus):
    config = strategy_turns.make_config(strategies.DEFAULT, str(corpus), "muon_kimi", "zero2", 2, 8)
    assert (config.data.batch_size, config.data.micro_batch, config.trainer.strategy) == (8, 4, "zero2")
    assert (config.trainer.devices, config.recipe.optimizer, config.trainer.max_steps) == (2, "muon_kimi", 8)


def test_what_ddp_takes_is_what_is_planned(corpus):
    """Two real processes; the model is large enough to stand out from what a process takes anyway."""
    settings = asdict(replace(strategies.QUICK, width=256, depth=4, context=8))
    arguments = {"corpus": str(corpus), "rule": "adamw", "strategy": "ddp", "processes": 2, "settings": settings}
    found = measure_together(f"{strategies.TURNS}:take_peak", arguments, 2, 1, optimizer_memory.MAPPED)
    assert len(found) == 2
    assert not reset_peak() or max(rank["peak"] for rank in found) == pytest.approx(found[0]["plan"], rel=0.15)


def test_processes_find_each_other():
    assert measure_together("os:getenv", {"key": "RANK"}, 3, threads=1) == ["0", "1", "2"]
    assert measure_together("os:getenv", {"key": "WORLD_SIZE"}, 2, threads=1) == ["2", "2"]


def test_one_failed_process_ends_all():
    wait = "import os, time; os.environ['RANK'] == '1' and 1 / 0; time.sleep(100)"
    with pytest.raises(UserError, match=r"ended with status 1:(.|\n)*ZeroDivisionError"):
        measure_together("timeit:timeit", {"stmt": wait, "number": 1}, 2, threads=1)


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
    assert np.unique(store.window(0, 400)).size > 100


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


def test_a_turn_is_a_fresh_process_with_an_untouched_allocator(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    found = measure("os:getenv", {"key": "MALLOC_ARENA_MAX"}, threads=2)
    assert found is None
    assert measure("os:getenv", {"key": "OMP_NUM_THREADS"}, threads=2) == "2"
    assert measure("os:getenv", {"key": "MALLOC_ARENA_MAX"}, threads=2, environment={"MALLOC_ARENA_MAX": "3"}) == "3"


def test_a_failed_turn_says_why():
    with pytest.raises(UserError, match=r"json:loads ended with status 1:(.|\n)*JSONDecodeError"):
        measure("json:loads", {"s": "{"}, threads=1)


@pytest.mark.parametrize(("patience", "kept", "said"), [(0.0, ["a", "b"], 2), (1.0, ["b", "d"], 4)])
def test_disturbed_rounds_are_repeated_while_patience_lasts(monkeypatch, patience, kept, said):
    monkeypatch.setattr(rounds, "_wait_for_quiet", lambda deadline: None)
    waiting = [("a", 1.26, "A"), ("b", 0.0, "B"), ("c", 0.5, "C"), ("d", 0.05, "D")]
    lines = []
    found = rounds.take_rounds(replace(TINY, patience=patience), lambda: waiting.pop(0), lines.append)
    assert (found, len(lines)) == (kept, said)
    once_more = "; once more" if patience else ""
    assert lines[0] == f"round 1 of 2: A (other programs kept 1.3 cores busy){once_more}"
    assert lines[-1].endswith("B" if not patience else "D")


def test_patience_runs_out(monkeypatch):
    now = iter([0.0, 0.0, 30.0, 61.0, 61.0, 61.0])
    monkeypatch.setattr(rounds.time, "monotonic", lambda: next(now))
    monkeypatch.setattr(rounds, "_wait_for_quiet", lambda deadline: rounds.time.monotonic())
    found = rounds.take_rounds(replace(TINY, rounds=1, patience=1.0), lambda: ("a", 1.0, "A"), lambda text: None)
    assert found == ["a"]


def test_options_override_a_case(monkeypatch):
    seen = []
    case = replace(cases.CASES["trainer"], run=lambda settings, say: seen.append(settings) or say("a turn") or [])
    monkeypatch.setitem(cases.CASES, "trainer", case)
    said = []
    found = cases.run_case("trainer", said.append, quick=True, rounds=7, threads=1)
    assert (seen[0].rounds, seen[0].threads, seen[0].steps) == (7, 1, trainer.QUICK.steps)
    assert (found.case, found.settings, said) == ("trainer", asdict(seen[0]), ["trainer, a turn"])
    with pytest.raises(UserError, match="--rounds is 0; expected a whole number of at least 1"):
        cases.run_case("trainer", said.append, rounds=0)


def fake_cases(monkeypatch):
    quantities = [
        result.quantity("speed", "tokens/s", {"ours": [2000.0], "bare": [1000.0]}, []),
        replace(result.quantity("cost", "%", {"ours": [0.25]}, []), aims={"ours": "at most 0.5"}),
    ]
    for name, case in cases.CASES.items():
        monkeypatch.setitem(cases.CASES, name, replace(case, run=lambda settings, say: quantities))


def test_json(monkeypatch, capsys, tmp_path):
    fake_cases(monkeypatch)
    assert command.main(["--quick", "--json", "-"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [case["case"] for case in printed["cases"]] == list(cases.CASES)
    assert printed["quick"] is True
    assert printed["machine"].keys() == machine().keys()
    spread = printed["cases"][0]["quantities"][0]["measured"]["ours"]
    assert spread == {"median": 2000.0, "lowest": 2000.0, "highest": 2000.0, "values": [2000.0]}

    assert command.main(["depth", "--json", str(tmp_path / "bench.json")]) == 0
    assert "aim: at most 0.5" in capsys.readouterr().out
    assert [case["case"] for case in json.loads((tmp_path / "bench.json").read_text())["cases"]] == ["depth"]


def test_aims_are_not_shown_where_they_do_not_apply(monkeypatch, capsys):
    fake_cases(monkeypatch)
    command.main(["trainer", "--quick"])
    out = capsys.readouterr().out
    assert "2,000" in out
    assert "aim" not in out


def test_unknown_case(capsys):
    with pytest.raises(SystemExit) as error:
        command.main(["speed"])
    assert error.value.code == 2
    assert (
        "unknown case 'speed'; expected trainer, depth, feature_norms, spectral_norms, optimizers, strategies"
        in capsys.readouterr().err
    )


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit):
        command.main(["--help"])
    assert "mup-lightning bench trainer --json bench.json" in capsys.readouterr().out


def test_tables_line_up():
    quantity = result.quantity(
        "speed", "tokens/s", {"ours": [1.0, 3.0]}, [result.ratio("a", "b", {"a": [1], "b": [2]})]
    )
    text = table.table(result.CaseResult("trainer", "what", {"width": 1}, [quantity]))
    figures = [line for line in text.splitlines() if line.startswith("    ")]
    assert len({len(line) for line in figures}) == 1
    assert figures[0].split() == ["ours", "2.000", "1.000", "3.000"]
