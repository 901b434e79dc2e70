"""Case `optimizers`: what a step of our update rules costs, against the best that others offer, and what it takes.

Each comparison is a fresh process a round, in which the contenders take turns: ours, the others, ours again (the
control). Only the optimizer's step is timed. Memory is measured once, a process for every rule: it does not vary.
What exceeds, at the peak of some steps, weights, gradients and the state that stays was made in a step.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from mup_lightning.spectral.families import FAMILIES
from tests.benchmarks.harness import Case, Quantity, Settings, Turn
from tests.benchmarks.process import MAPPED, measure, peak_mb, reset_peak, resident_mb

OURS, AGAIN = "ours", "ours again"
ALL_RULES = "a step of the whole model"
SLOW = {"shampoo": 1}
"""Steps of rules that are timed in fewer than 10."""


@dataclass(frozen=True)
class Comparison:
    """Contenders that do the same work.

    Attributes:
        rule: ours.
        others: contender -> (steps, what its ratio should be); see `contenders.OTHERS`.
        steps: of ours.
        which: hidden matrices that take part, by rows and columns; None for the whole model's parameters.
        bfloat16: ours iterates in it, as torch's Muon always does.
    """

    rule: str
    others: dict[str, tuple[int, str]]
    steps: int
    which: Callable[[int, int], bool] | None = lambda rows, columns: True
    bfloat16: bool = False

    @property
    def possible(self) -> bool:
        """Whether the library that it compares with is installed."""
        library = "pytorch_optimizer"
        return not any(library in other for other in self.others) or importlib.util.find_spec(library) is not None


_AIM = "at most 1.2"
COMPARISONS = {
    "AdamW, all parameters": Comparison("adamw", {"torch fused": (20, "at most 1.1")}, steps=20, which=None),
    "Muon, hidden matrices": Comparison(
        "muon", {"torch": (1, "at most 1/25 on a processor without bfloat16"), "plain": (5, "")}, steps=5
    ),
    "Muon in bfloat16, hidden matrices": Comparison("muon", {"torch": (1, "")}, steps=1, bfloat16=True),
    "Muon, square matrices": Comparison(
        "muon", {"plain": (20, "at most 1")}, steps=20, which=lambda rows, columns: rows == columns
    ),
    "Muon, 1:4 matrices": Comparison(
        "muon", {"plain": (20, "below 1")}, steps=20, which=lambda rows, columns: rows != columns
    ),
    "Shampoo, hidden matrices": Comparison(
        "shampoo",
        {f"pytorch_optimizer {name}": (1, _AIM) for name in ("Shampoo", "Scalable, SVD", "Scalable")},
        steps=1,
    ),
    "SOAP, hidden matrices": Comparison("soap", {"pytorch_optimizer SOAP": (10, _AIM)}, steps=10),
}


def times(settings: Settings) -> Turn:
    """One round: milliseconds of a step."""
    names = [name for name, comparison in COMPARISONS.items() if comparison.possible] + [ALL_RULES]
    arguments: dict[str, Any] = {"settings": asdict(settings)}
    return {name: measure(take_turn, threads=settings.threads, name=name, **arguments)[0] for name in names}


def take_turn(name: str, settings: dict[str, Any]) -> dict[str, float]:
    """One round of one comparison: milliseconds of a step by contender."""
    from mup_lightning.training import tune_allocator

    tune_allocator()
    s = Settings(**settings)
    timed = _all_rules(s) if name == ALL_RULES else contenders(COMPARISONS[name], s)
    for contender, _ in dict(timed.values()).items():
        contender.seconds(max(1, s.warmup))
    return {key: 1e3 * contender.seconds(s.steps * steps) for key, (contender, steps) in timed.items()}


def contenders(comparison: Comparison, settings: Settings) -> dict[str, tuple[Any, int]]:
    """Name -> (contender, steps), in the order of their turns; the control is ours once more."""
    from tests.benchmarks.contenders import OTHERS, Workload

    workload = Workload(settings, comparison.which)
    ours = workload.ours(comparison.rule, {"muon": {"dtype": "bfloat16" if comparison.bfloat16 else "auto"}})
    others = {other: (workload.theirs(OTHERS[other]), steps) for other, (steps, _) in comparison.others.items()}
    return {OURS: (ours, comparison.steps), **others, AGAIN: (ours, comparison.steps)}


def _all_rules(settings: Settings) -> dict[str, tuple[Any, int]]:
    """Every rule as in training: matrix rules on the hidden matrices, AdamW for the rest."""
    from tests.benchmarks.contenders import Workload

    workload = Workload(settings, draws=4)
    return {rule: (workload.ours(rule), SLOW.get(rule, 10)) for rule in FAMILIES}


def memory(settings: Settings) -> Turn:
    """State, and what a step makes, over the parameters' bytes; nothing where the peak cannot be reset."""
    if not reset_peak():
        return {}
    found = {
        rule: measure(take_memory, threads=settings.threads, environment=MAPPED, rule=rule, settings=asdict(settings))[
            0
        ]
        for rule in FAMILIES
    }
    return {
        key: {rule: turn[key] / turn["parameters"] for rule, turn in found.items()}
        for key in ("state", "made in a step", "largest parameter")
    }


def take_memory(rule: str, settings: dict[str, Any]) -> dict[str, float]:
    """Bytes of "parameters", of the "state", "made in a step" at the peak of some, and of the "largest parameter"."""
    from tests.benchmarks.contenders import Workload

    s = Settings(**settings)
    steps = 11 if rule == "soap" else 3  # SOAP refreshes its bases in the eleventh
    small = Workload(replace(s, width=32, depth=1, context=8, tokenizer="bytes"), draws=1).ours(rule)
    small.seconds(steps)  # libraries are loaded
    contender = Workload(s, draws=1).ours(rule)
    contender.prepare()

    def above(count: int) -> float:
        """Bytes at the peak of so many steps beyond what there was before them."""
        before = resident_mb()
        reset_peak()
        for _ in range(count):
            contender.optimizer.step()
        return (peak_mb() - before) * 1e6

    first = above(1)
    state = sum(
        value.numel() * value.element_size()
        for values in contender.optimizer.state.values()
        for value in values.values()
        if hasattr(value, "numel")
    )
    return {
        "parameters": sum(4 * parameter.numel() for parameter in contender.parameters),
        "state": state,
        "made in a step": max(0.0, first - state, above(steps - 1)),  # the first step makes the state, too
        "largest parameter": max(4 * parameter.numel() for parameter in contender.parameters),
    }


def _quantities(settings: Settings) -> list[Quantity]:
    found = []
    for name, comparison in COMPARISONS.items():
        ratios = [(OURS, other, aim) for other, (_, aim) in comparison.others.items()]
        found.append(Quantity(name, "ms", [*ratios, (OURS, AGAIN, "")]))
    whole = Quantity(ALL_RULES, "ms", [(rule, "adamw", "") for rule in FAMILIES if rule != "adamw"])
    shares = [Quantity(name, "of parameter bytes") for name in ("state", "made in a step", "largest parameter")]
    return [*found, whole, *shares]


# Steps are counted in the settings' `steps`: one of the slowest contender's, more of the quick ones.
OPTIMIZERS = Case(
    "what a step of each optimizer costs, against others' code, and its memory",
    Settings(width=256, depth=4, context=1024, batch=1, tokenizer="gpt2", rounds=5, steps=1, warmup=1, threads=1),
    Settings(width=64, depth=1, context=32, batch=1, tokenizer="bytes", rounds=1, steps=1, warmup=1, threads=1),
    times,
    _quantities,
    memory,
)
