"""Case `trainer`: our trainer with its default callbacks against a bare PyTorch loop of the same model.

Each turn is a fresh process, and the contenders take turns: ours, bare, ours again. "Ours again" is the control: its
ratio to "ours" would be 1 on a quiet machine, and its range shows how far to trust the other ratio.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.benchmarks.corpus import write_corpus
from tests.benchmarks.process import measure
from tests.benchmarks.result import Quantity, Ratio, quantity, ratio
from tests.benchmarks.rounds import take_rounds
from tests.benchmarks.settings import Settings

DEFAULT = Settings(width=256, depth=4, context=256, batch=8, tokenizer="gpt2", rounds=5, steps=10, warmup=3)
QUICK = Settings(width=64, depth=2, context=32, batch=2, tokenizer="bytes", rounds=2, steps=3, warmup=1)

OURS, BARE, AGAIN = "ours", "bare", "ours again"
_FUNCTIONS = {
    OURS: "tests.benchmarks.ours:train",
    BARE: "tests.benchmarks.bare:train",
    AGAIN: "tests.benchmarks.ours:train",
}


def run(settings: Settings, say: Callable[[str], None]) -> list[Quantity]:
    """Measure speed and peak memory.

    Args:
        settings: shape, batch and amount of measuring.
        say: is told of every round.
    """
    with tempfile.TemporaryDirectory(prefix="mup-lightning-bench-") as folder:
        corpus = Path(folder) / "corpus"
        write_corpus(corpus, settings.tokenizer, train=1_000_000, validation=settings.tokens + 1)
        return quantities(take_rounds(settings, lambda: _take(settings, corpus), say), settings)


def _take(settings: Settings, corpus: Path) -> tuple[dict[str, dict[str, Any]], float, str]:
    """One round: contender -> what its process returned."""
    turns = {}
    for contender, function in _FUNCTIONS.items():
        data = {"shard": str(corpus / "train-00000.bin")} if contender == BARE else {"corpus": str(corpus)}
        turns[contender] = measure(function, {**data, "settings": asdict(settings)}, settings.threads)
    figures = ", ".join(
        f"{contender} {_speed(turn, settings):,.0f} tokens/s and {turn['peak_mb']:,.0f} MB"
        for contender, turn in turns.items()
    )
    return turns, max(turn["others"] for turn in turns.values()), figures


def quantities(rounds: list[dict[str, dict[str, Any]]], settings: Settings) -> list[Quantity]:
    """The figures of all rounds: contender -> what its process returned, in order."""

    def of(figure: Callable[[dict[str, Any]], float]) -> dict[str, list[float]]:
        return {contender: [figure(turns[contender]) for turns in rounds] for contender in _FUNCTIONS}

    speed = of(lambda turn: _speed(turn, settings))
    best = of(lambda turn: settings.tokens / min(turn["step_seconds"]))
    peak = of(lambda turn: turn["peak_mb"])
    own = of(lambda turn: turn["peak_mb"] - turn["imports_mb"])
    whole = {OURS: [turns[OURS]["whole_run_peak_mb"] for turns in rounds]}

    def against(values: dict[str, list[float]], aim: str = "") -> list[Ratio]:
        return [ratio(OURS, BARE, values, aim), ratio(OURS, AGAIN, values)]

    return [
        quantity("speed", "tokens/s", speed, against(speed, "at least 1.1")),
        quantity("speed in the fastest step", "tokens/s", best, against(best)),
        quantity("peak memory", "MB", peak, against(peak, "at most 0.5")),
        quantity("peak memory above imports", "MB", own, against(own)),
        quantity("peak memory with final save", "MB", whole, []),
        quantity("other programs", "cores", of(lambda turn: turn["others"]), []),
    ]


def _speed(turn: dict[str, Any], settings: Settings) -> float:
    """Tokens per second over all timed steps, what happens between them included."""
    seconds: list[float] = turn["step_seconds"]
    return settings.tokens * len(seconds) / sum(seconds)
