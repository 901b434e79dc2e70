"""Case `strategies`: what ZeRO costs and saves against ddp, and what sharing the work on matrices gains.

Two processes, one thread each. Times: in every round one pair of processes trains under all strategies in turn, ddp
first and last (the control); processor time stands beside wall time, because other programs hardly change it. Matrix
work: the optimizer's step alone, shared, replicated, shared again. Memory: once, a pair of processes for each strategy.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tests.benchmarks.corpus import write_corpus
from tests.benchmarks.memory import reset_peak
from tests.benchmarks.optimizer_memory import MAPPED
from tests.benchmarks.process import measure_together
from tests.benchmarks.processor import OtherPrograms
from tests.benchmarks.result import Quantity, quantity, ratio
from tests.benchmarks.rounds import take_rounds
from tests.benchmarks.settings import Settings

TURNS = "tests.benchmarks.strategy_turns"
PROCESSES = 2
RULES = ("adamw", "muon_kimi")
DDP, AGAIN = "ddp", "ddp again"
AIMS = {"zero0": "at most 1.05", "zero1": "at most 1.15", "zero2": "at most 1.15", "zero3": "at most 1.15"}
STRATEGIES = (DDP, *AIMS)
SHARED, REPLICATED, SHARED_AGAIN = "shared", "replicated", "shared again"


@dataclass(frozen=True)
class StrategySettings(Settings):
    """See `Settings`.

    Attributes:
        rules: to train by.
        memory: strategies whose memory is measured.
    """

    rules: tuple[str, ...] = RULES
    memory: tuple[str, ...] = STRATEGIES


_SHARED: dict[str, Any] = {"tokenizer": "bytes", "threads": 1}
DEFAULT = StrategySettings(width=256, depth=4, context=256, batch=8, rounds=5, steps=5, warmup=2, **_SHARED)
QUICK = StrategySettings(
    **{"width": 32, "depth": 1, "context": 16, "batch": 2, "rounds": 1, "steps": 1, "warmup": 1, **_SHARED},
    rules=("muon_kimi",),
    memory=(DDP,),
)


def run(settings: Settings, say: Callable[[str], None]) -> list[Quantity]:
    """Measure; see the module's text.

    Args:
        settings: shape, batch and amount of measuring; memory is measured at twice the width and depth.
        say: is told of every round.
    """
    assert isinstance(settings, StrategySettings)
    with tempfile.TemporaryDirectory(prefix="mup-lightning-bench-") as folder:
        corpus = Path(folder) / "corpus"
        write_corpus(corpus, settings.tokenizer, train=100_000, validation=settings.context + 1)
        rounds = take_rounds(settings, lambda: _take(settings, str(corpus)), say)
        return quantities(rounds, settings.rules) + _memory(settings, str(corpus), say)


def _take(settings: StrategySettings, corpus: str) -> tuple[dict[str, dict[str, float]], float, str]:
    """One round: rule, "rule, processor" or "matrices" -> contender -> milliseconds."""
    found = {}
    others = OtherPrograms()
    contenders = [*STRATEGIES, AGAIN]
    for rule in settings.rules:
        arguments = {"corpus": corpus, "rule": rule, "settings": asdict(settings), "processes": PROCESSES}
        arguments["strategies"] = [*STRATEGIES, DDP]
        ranks = measure_together(f"{TURNS}:take_times", arguments, PROCESSES, settings.threads)
        # Of wall times the slowest process's counts, of processor times the sum.
        found[rule] = dict(zip(contenders, map(max, zip(*(rank["wall"] for rank in ranks), strict=True)), strict=True))
        spent = map(sum, zip(*(rank["processor"] for rank in ranks), strict=True))
        found[f"{rule}, processor"] = dict(zip(contenders, spent, strict=True))
    ranks = measure_together(f"{TURNS}:take_matrices", {"settings": asdict(settings)}, PROCESSES, settings.threads)
    found["matrices"] = {contender: max(rank[contender] for rank in ranks) for contender in ranks[0]}
    told = "; ".join(
        f"{name} " + ", ".join(f"{contender} {milliseconds:,.1f}" for contender, milliseconds in each.items())
        for name, each in found.items()
    )
    return found, others.cores(), told


def quantities(rounds: list[dict[str, dict[str, float]]], rules: Sequence[str] = RULES) -> list[Quantity]:
    """The figures of all rounds; see `_take`."""

    def of(name: str) -> dict[str, list[float]]:
        return {contender: [found[name][contender] for found in rounds] for contender in rounds[0][name]}

    result = []
    for rule in rules:
        for name, of_what in ((rule, ""), (f"{rule}, processor", "processor time of ")):
            each = of(name)
            ratios = [ratio(strategy, DDP, each, aim) for strategy, aim in AIMS.items()]
            result.append(quantity(f"{of_what}a step, {rule}", "ms", each, [*ratios, ratio(AGAIN, DDP, each)]))
    each = of("matrices")
    gains = [ratio(REPLICATED, SHARED, each, "at least 1.7"), ratio(SHARED_AGAIN, SHARED, each)]
    return [*result, quantity("optimizer's step, hidden matrices", "ms", each, gains)]


def _memory(settings: StrategySettings, corpus: str, say: Callable[[str], None]) -> list[Quantity]:
    """The peak of one process by strategy, and what `plan` says; nothing where the peak cannot be reset."""
    if not reset_peak():
        say("peak memory is measured on Linux alone; left out")
        return []
    large = replace(settings, width=2 * settings.width, depth=2 * settings.depth, batch=PROCESSES)
    large = replace(large, context=min(64, settings.context))
    result = []
    for rule in settings.rules:
        arguments: dict[str, Any] = {"corpus": corpus, "rule": rule, "settings": asdict(large), "processes": PROCESSES}
        ranks = {
            strategy: measure_together(
                f"{TURNS}:take_peak", {**arguments, "strategy": strategy}, PROCESSES, settings.threads, MAPPED
            )
            for strategy in settings.memory
        }
        each = {strategy: [max(rank["peak"] for rank in ranks[strategy])] for strategy in settings.memory}
        planned = {f"{strategy} by plan": [ranks[strategy][0]["plan"]] for strategy in settings.memory}
        ratios = [
            ratio(strategy, f"{strategy} by plan", each | planned, "within 10 % of 1") for strategy in settings.memory
        ]
        result.append(quantity(f"peak memory of a process, {rule}", "MB", each | planned, ratios))
    return result
