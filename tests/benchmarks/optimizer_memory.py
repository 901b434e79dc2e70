"""What our update rules keep, and what they make while they step, measured.

A process for every rule: whatever exceeds, at the peak of some steps, weights, gradients and the state that stays was
made in a step. Every large tensor is mapped from the system on its own, so that the kernel's high-water mark counts
exactly what is alive, LAPACK's workspaces with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from tests.benchmarks.memory import peak_mb, reset_peak, resident_mb
from tests.benchmarks.process import measure
from tests.benchmarks.result import Quantity, quantity
from tests.benchmarks.settings import Settings

FUNCTION = "tests.benchmarks.optimizer_memory:take_memory"
MAPPED = {"MALLOC_MMAP_THRESHOLD_": "65536"}


def measure_memory(settings: Settings, say: Callable[[str], None]) -> list[Quantity]:
    """State and peak of every rule; nothing where the system does not let the peak be reset.

    Args:
        settings: shape of the model.
        say: is told if there is nothing.
    """
    from tests.benchmarks.optimizers import RULES

    if not reset_peak():
        say("the peak memory of a step is measured on Linux alone; left out")
        return []
    found = {
        rule: measure(FUNCTION, {"rule": rule, "settings": asdict(settings)}, settings.threads, MAPPED)
        for rule in RULES
    }
    return quantities(found)


def quantities(found: dict[str, dict[str, float]]) -> list[Quantity]:
    """Rule -> what `take_memory` returned."""

    def of(key: str) -> dict[str, list[float]]:
        return {rule: [turn[key] / turn["parameters"]] for rule, turn in found.items()}

    extra = quantity("made in a step", "of parameter bytes", of("extra"), [])
    aims = {rule: f"state + one buffer, {turn['buffer'] / turn['parameters']:.3f}" for rule, turn in found.items()}
    return [quantity("state", "of parameter bytes", of("state"), []), replace(extra, aims=aims)]


def take_memory(rule: str, settings: dict[str, Any]) -> dict[str, float]:
    """Bytes of "parameters", of the "state", of the "extra" at the peak of some steps, and of one "buffer"."""
    from tests.benchmarks.optimizer_contenders import Workload

    s = Settings(**settings)
    steps = 11 if rule == "soap" else 3  # SOAP refreshes its bases in the eleventh
    small = Workload(replace(s, width=32, depth=1, context=8, tokenizer="bytes"), draws=1).ours(rule)
    small.seconds(steps)  # libraries are loaded
    contender = Workload(s, draws=1).ours(rule)
    contender.prepare()
    first = _above(contender.optimizer.step)
    state = sum(
        value.numel() * value.element_size()
        for values in contender.optimizer.state.values()
        for value in values.values()
        if hasattr(value, "numel")
    )
    later = _above(lambda: [contender.optimizer.step() for _ in range(steps - 1)])
    return {
        "parameters": sum(4 * parameter.numel() for parameter in contender.parameters),
        "state": state,
        "extra": max(0.0, first - state, later),  # the first step makes the state, too
        "buffer": buffer(rule, contender.optimizer.param_groups),
    }


def _above(work: Callable[[], Any]) -> float:
    """Bytes at the peak of some work beyond what there was before it."""
    before = resident_mb()
    reset_peak()
    work()
    return (peak_mb() - before) * 1e6


def buffer(rule: str, groups: list[dict[str, Any]]) -> int:
    """Bytes of what we call one buffer: the largest thing that the rule has in hand at once.

    A direction of the largest parameter; for rules that work on batches of matrices, the largest batch; for those with
    preconditioners, the largest of them in the dtype that it is decomposed in. AdamW and SGD need none.
    """
    from mup_lightning.optim.matrices import equal_shapes
    from mup_lightning.optim.rule import Item

    items = [
        Item(p, p, {}, blocks)
        for group in groups
        if group["rule"] == rule
        for p, blocks in zip(group["params"], group["blocks"], strict=True)
    ]
    if rule in ("adamw", "sgd"):
        return 0
    if rule in ("shampoo", "soap"):
        squares = [
            item.blocks * max(item.parameter.shape[0] // item.blocks, item.parameter.shape[1]) ** 2 for item in items
        ]
        return (8 if rule == "shampoo" else 4) * max(squares)
    if rule in ("lion", "sophia"):
        return 4 * max(item.parameter.numel() for item in items)
    return 4 * max(sum(item.parameter.numel() for item in batch) for batch in equal_shapes(items))
