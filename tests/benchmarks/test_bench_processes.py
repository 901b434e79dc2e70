"""The strategies' case of the benchmark, and the processes that turns run in."""

from dataclasses import asdict, replace

import pytest

from mup_lightning.errors import UserError
from tests.benchmarks import optimizer_memory, strategies, strategy_turns
from tests.benchmarks.corpus import write_corpus
from tests.benchmarks.memory import reset_peak
from tests.benchmarks.process import measure, measure_together


@pytest.fixture
def corpus(tmp_path):
    write_corpus(tmp_path / "corpus", "bytes", train=400, validation=40)
    return tmp_path / "corpus"


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


def test_a_turn_is_a_fresh_process_with_an_untouched_allocator(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    found = measure("os:getenv", {"key": "MALLOC_ARENA_MAX"}, threads=2)
    assert found is None
    assert measure("os:getenv", {"key": "OMP_NUM_THREADS"}, threads=2) == "2"
    assert measure("os:getenv", {"key": "MALLOC_ARENA_MAX"}, threads=2, environment={"MALLOC_ARENA_MAX": "3"}) == "3"


def test_a_failed_turn_says_why():
    with pytest.raises(UserError, match=r"json:loads ended with status 1:(.|\n)*JSONDecodeError"):
        measure("json:loads", {"s": "{"}, threads=1)
