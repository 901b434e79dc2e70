"""Case `spectral_norms`: what the live spectral monitor costs our trainer at its default interval.

As case `feature_norms`: the real trainer measures in every third step, and the two steps after each are the comparison
and the control. At small batches, where a step is short and the cost, which does not depend on the batch, weighs most;
for the settings' shape and for one of half the width and half the context.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

from mup_lightning.config.schema import TrainerConfig
from tests.benchmarks import feature_norms
from tests.benchmarks.corpus import write_corpus
from tests.benchmarks.feature_norms import FUNCTION, KINDS
from tests.benchmarks.process import measure
from tests.benchmarks.result import Quantity, quantity
from tests.benchmarks.rounds import take_rounds
from tests.benchmarks.settings import Settings

# Of both settings, `steps` counts groups of three steps.
DEFAULT = Settings(width=256, depth=4, context=256, batch=2, tokenizer="gpt2", rounds=5, steps=8, warmup=3)
QUICK = Settings(width=64, depth=2, context=32, batch=2, tokenizer="bytes", rounds=2, steps=2, warmup=3)

WITH = "with spectral norms"
NAMES = {feature_norms.WITH: WITH, feature_norms.WITHOUT: "without", feature_norms.AGAIN: "without again"}


def run(settings: Settings, say: Callable[[str], None]) -> list[Quantity]:
    """Measure the cost at both shapes; see the module's text.

    Args:
        settings: shape, batch and amount of measuring.
        say: is told of every round.
    """
    every, found = TrainerConfig().spectral_norms_every, []
    for shape in (settings, replace(settings, width=settings.width // 2, context=settings.context // 2)):
        # Whole groups only, so that the first timed step is a measured one.
        training = replace(shape, warmup=-(-shape.warmup // 3) * 3, steps=3 * shape.steps)
        with tempfile.TemporaryDirectory(prefix="mup-lightning-bench-") as folder:
            corpus = Path(folder) / "corpus"
            write_corpus(corpus, shape.tokenizer, train=1_000_000, validation=shape.tokens + 1)
            arguments = {
                "corpus": str(corpus),
                "settings": asdict(training),
                "feature_norms_every": 0,
                "spectral_norms_every": len(KINDS),
            }

            def take(arguments: dict[str, Any] = arguments) -> tuple[dict[str, Any], float, str]:
                turn = measure(FUNCTION, arguments, settings.threads)
                cost = feature_norms.costs(turn["step_seconds"], every)[feature_norms.WITH]
                return turn, turn["others"], f"{cost:.3f} % of a step"

            name = f"({shape.width}, {shape.depth}), {shape.tokens} tokens a step"
            found += quantities(name, take_rounds(shape, take, lambda text, name=name: say(f"{name}: {text}")), every)  # type: ignore[misc]
    return found


def quantities(shape: str, rounds: list[dict[str, Any]], every: int) -> list[Quantity]:
    """The figures of all rounds at one shape: what `ours.train` returned, in order."""
    seconds = [turn["step_seconds"] for turn in rounds]
    kinds = [feature_norms.kinds(turn) for turn in seconds]
    steps = {NAMES[kind]: [1e3 * median(turn[kind]) for turn in kinds] for kind in KINDS}
    costs = [feature_norms.costs(turn, every) for turn in seconds]
    cost = {NAMES[kind]: [turn[kind] for turn in costs] for kind in (feature_norms.WITH, feature_norms.AGAIN)}
    result = quantity(f"{shape}: cost at every {every}", "%", cost, [])
    return [
        quantity(f"{shape}: a step", "ms", steps, []),
        replace(result, aims={WITH: "at most 1"}),
        quantity("other programs", "cores", {"all steps": [turn["others"] for turn in rounds]}, []),
    ]
