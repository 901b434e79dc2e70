"""Case `feature_norms`: what the feature norms cost our trainer at their default interval.

The real trainer runs with the real callback and TensorBoard, but measures in every third step: each measured step is
followed by two without, the first to compare with, the second as control. So steps of all three kinds lie side by side
in one process. A step counts from the begin of its forward pass to that of the next one, the writing of the norms
included. The cost at the interval N is (measured - plain) / plain / N.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

from mup_lightning.config.schema import TrainerConfig
from tests.benchmarks.corpus import write_corpus
from tests.benchmarks.process import measure
from tests.benchmarks.result import Quantity, quantity
from tests.benchmarks.rounds import take_rounds
from tests.benchmarks.settings import Settings

# Of both settings, `steps` counts groups of three steps.
DEFAULT = Settings(width=256, depth=4, context=256, batch=8, tokenizer="gpt2", rounds=5, steps=8, warmup=3)
QUICK = Settings(width=64, depth=2, context=32, batch=2, tokenizer="bytes", rounds=2, steps=2, warmup=3)

FUNCTION = "tests.benchmarks.ours:train"
WITH, WITHOUT, AGAIN = "with feature norms", "without", "without again"
KINDS = (WITH, WITHOUT, AGAIN)


def run(settings: Settings, say: Callable[[str], None]) -> list[Quantity]:
    """Measure the cost; see the module's text.

    Args:
        settings: shape, batch and amount of measuring.
        say: is told of every round.
    """
    every = TrainerConfig().feature_norms_every
    # Whole groups only, so that the first timed step is a measured one.
    training = replace(settings, warmup=-(-settings.warmup // 3) * 3, steps=3 * settings.steps)
    with tempfile.TemporaryDirectory(prefix="mup-lightning-bench-") as folder:
        corpus = Path(folder) / "corpus"
        write_corpus(corpus, settings.tokenizer, train=1_000_000, validation=settings.tokens + 1)
        arguments = {"corpus": str(corpus), "settings": asdict(training), "feature_norms_every": len(KINDS)}

        def take() -> tuple[dict[str, Any], float, str]:
            turn = measure(FUNCTION, arguments, settings.threads)
            return turn, turn["others"], f"{costs(turn['step_seconds'], every)[WITH]:.3f} % of a step"

        return quantities(take_rounds(settings, take, say), every)


def kinds(step_seconds: list[float]) -> dict[str, list[float]]:
    """Part the steps of a turn by kind; in each place the three stood next to each other."""
    return {kind: step_seconds[place :: len(KINDS)] for place, kind in enumerate(KINDS)}


def costs(step_seconds: list[float], every: int) -> dict[str, float]:
    """Percent of a step: the median over the groups of a turn, of measuring and of nothing (the control)."""
    by_kind = kinds(step_seconds)
    groups = list(zip(*(by_kind[kind] for kind in KINDS), strict=True))
    return {
        WITH: 100 / every * median((measured - plain) / plain for measured, plain, _ in groups),
        AGAIN: 100 / every * median((again - plain) / plain for _, plain, again in groups),
    }


def quantities(rounds: list[dict[str, Any]], every: int) -> list[Quantity]:
    """The figures of all rounds: what `ours.train` returned, in order."""
    seconds = [turn["step_seconds"] for turn in rounds]
    steps = {kind: [1e3 * median(kinds(turn)[kind]) for turn in seconds] for kind in KINDS}
    cost = {kind: [costs(turn, every)[kind] for turn in seconds] for kind in (WITH, AGAIN)}
    result = quantity(f"cost at every {every} steps", "%", cost, [])
    return [
        quantity("time of a step", "ms", steps, []),
        replace(result, aims={WITH: "at most 0.5"}),
        quantity("other programs", "cores", {"all steps": [turn["others"] for turn in rounds]}, []),
    ]
