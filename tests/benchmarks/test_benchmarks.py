"""The benchmarks are wired up, compare equal work, and count right. No test looks at how long anything took."""

import json
from dataclasses import replace

import pytest
import torch

from mup_lightning.errors import UserError
from mup_lightning.spectral.families import FAMILIES
from tests.benchmarks import __main__ as command
from tests.benchmarks.generation import tokens_per_second
from tests.benchmarks.harness import QUICK, summary
from tests.benchmarks.optimizers import ALL_RULES, COMPARISONS, OURS, take_turn
from tests.benchmarks.plan import SHAPES, take
from tests.benchmarks.process import StepClock, measure
from tests.benchmarks.strategies import STRATEGIES, shared
from tests.benchmarks.trainer import WITH, WITHOUT_AGAIN, corpus_for, costs, loop, ours

TINY = replace(QUICK, width=16, depth=1, context=8)
ALIKE = {"AdamW": (3, 1e-4), "Shampoo": (1, 2e-3), "SOAP": (3, 1e-2), "Muon": (3, 4e-2)}
"""Steps, and how far the directions may lie apart. Only Shampoo's first step is the same rule everywhere; torch's Muon
rounds to bfloat16; and SOAP brings the rounding of small differences to the size of 1."""


def moves(contender, steps):
    before = [parameter.detach().clone() for parameter in contender.parameters]
    contender.seconds(steps)
    return [parameter.detach() - old for parameter, old in zip(contender.parameters, before, strict=True)]


@pytest.mark.parametrize("name", COMPARISONS)
def test_contenders_do_the_same_work(name):
    """Matrix by matrix and up to a factor: libraries scale by other learning rates, and by corrections of averages.

    SOAP on square matrices alone: the eigenvectors of a singular matrix are whatever the rounding makes them.
    """
    kind = name.split(",")[0].split()[0]
    comparison, (steps, bound) = COMPARISONS[name], ALIKE[kind]
    if kind == "SOAP":
        comparison = replace(comparison, which=lambda rows, columns: rows == columns)
    made = comparison.contenders(TINY)
    own = torch.cat([move.flatten() for move in moves(made[OURS][0], steps)])
    for other in comparison.others:
        theirs = moves(made[other][0], steps)
        for mine, move in zip(own.split([move.numel() for move in theirs]), theirs, strict=True):
            assert (mine / mine.norm() - move.flatten() / move.norm()).norm() < bound, (other, move.shape)


def test_every_rule_takes_its_turn():
    found = take_turn(TINY, ALL_RULES)
    assert min(found.values()) > 0
    assert found.keys() == FAMILIES.keys()


def test_our_trainer_and_the_loops_run_the_same_steps():
    settings = replace(TINY, steps=3)
    with corpus_for(settings) as corpus:
        found = [ours(settings, corpus), ours(settings, corpus, quiet=True)]
        found += [loop(settings, corpus, stock=stock) for stock in (True, False)]
    assert [len(each["step_seconds"]) for each in found] == [settings.steps] * 4
    assert found[0]["whole_run_peak_mb"] >= found[0]["peak_mb"] > found[0]["imports_mb"] > 0


def test_both_ways_of_generating_make_the_same_number():
    assert min(tokens_per_second(TINY, keep) for keep in (True, False)) > 0


def test_plan_s_seconds_are_set_beside_those_of_every_shape():
    found = take(TINY, quick=True)
    assert found.keys() == SHAPES.keys()
    assert min(value for one in found.values() for value in one.values()) > 0


def test_figures_are_taken_round_by_round_and_leave_out_what_they_should():
    turns = [{"a": 2.0, "b": 1.0}, {"a": 6.0, "b": 2.0}, {"a": 30.0, "b": 5.0}]
    ratio = summary(turns, [("a", "b", "at least 1")])["a / b"]
    assert ratio == {"median": 3.0, "lowest": 2.0, "highest": 6.0, "values": [2.0, 3.0, 6.0], "aim": "at least 1"}
    # Groups of (measured, plain, plain again); the middle group was disturbed.
    cost = costs([1.5, 1.0, 1.1, 9.0, 1.0, 5.0, 3.0, 2.0, 2.2], every=50)
    assert cost == {WITH: pytest.approx(1.0), WITHOUT_AGAIN: pytest.approx(0.2)}


def test_the_clock_counts_whole_steps_of_any_optimizer():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
    with StepClock(warmup=2, steps=3) as clock:
        with pytest.raises(RuntimeError, match="0 steps were run; 6 are needed"):
            _ = clock.seconds
        for _ in range(6):
            optimizer.step()
    optimizer.step()  # outside: not counted
    assert len(clock.seconds) == 3
    assert clock.peak_mb > 0


def test_processes_share_the_batch_and_one_that_fails_says_why():
    with pytest.raises(UserError, match=r"summary ended with status 1:(.|\n)*missing 1 required .*'ratios'"):
        measure(summary, TINY, processes=2)
    config = shared(replace(TINY, batch=8), "corpus", "muon_kimi", STRATEGIES[2])
    assert (config.data.batch_size, config.data.micro_batch, config.trainer.devices) == (8, 4, 2)


def test_a_case_from_the_command_line(tmp_path, capsys):
    assert command.main(["feature_norms", "--quick", "--json", str(tmp_path / "out.json")]) == 0
    assert "cost at every 50 steps (%)" in capsys.readouterr().out
    found = json.loads((tmp_path / "out.json").read_text())
    assert list(found["cases"]["feature_norms"]["quantities"])[-1] == "other programs (cores)"
    with pytest.raises(SystemExit):
        command.main(["speed"])
    assert "unknown case 'speed'; expected trainer, overhead, feature_norms" in capsys.readouterr().err
