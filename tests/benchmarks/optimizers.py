"""Case `optimizers`: what a step of our update rules costs, against the best that others offer, and what it takes.

Each comparison is a fresh process a round, in which the contenders take turns: ours, the others, ours again (the
control). Only the optimizer's step is timed. Memory is measured once, a process for every rule: it does not vary.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from tests.benchmarks.process import measure
from tests.benchmarks.result import Quantity, quantity, ratio
from tests.benchmarks.rounds import take_rounds
from tests.benchmarks.settings import Settings

FUNCTION = "tests.benchmarks.optimizers:take_turn"
OURS, AGAIN, ADAMW = "ours", "ours again", "adamw"
RULES = (ADAMW, "sgd", "lion", "sophia", "muon", "muon_kimi", "shampoo", "soap", "sso")
LIBRARY = "pytorch_optimizer"
MISSING = (
    f"{LIBRARY} is not installed, so Shampoo and SOAP are compared with nothing; to have it, "
    f"pip install -c constraints.txt {LIBRARY}==4.1.0"
)

# Steps are counted in the settings' `steps`: one of the slowest contender's, more of the quick ones.
DEFAULT = Settings(width=256, depth=4, context=1024, batch=1, tokenizer="gpt2", rounds=5, steps=1, warmup=1, threads=1)
QUICK = Settings(width=64, depth=1, context=32, batch=1, tokenizer="bytes", rounds=2, steps=1, warmup=1, threads=1)


@dataclass(frozen=True)
class Comparison:
    """Contenders that do the same work.

    Attributes:
        name: what is stepped.
        rule: ours.
        others: contender -> (steps, what its ratio shall be); see `contenders`.
        steps: of ours.
        shapes: of the hidden matrices that take part: "all", "square" or "1:4"; None for the whole model's parameters.
        bfloat16: ours iterates in it, as torch's Muon always does.
    """

    name: str
    rule: str
    others: dict[str, tuple[int, str]]
    steps: int
    shapes: str | None = "all"
    bfloat16: bool = False


_MUON_AIM = "at most 1/25 on a processor without bfloat16"
_SHAMPOO_AIM = "at most 1.2"
COMPARISONS = (
    Comparison("AdamW, all parameters", "adamw", {"torch fused": (20, "at most 1.1")}, steps=20, shapes=None),
    Comparison("Muon, hidden matrices", "muon", {"torch": (1, _MUON_AIM), "plain": (5, "")}, steps=5),
    Comparison("Muon in bfloat16, hidden matrices", "muon", {"torch": (1, "")}, steps=1, bfloat16=True),
    Comparison("Muon, square matrices", "muon", {"plain": (20, "at most 1")}, steps=20, shapes="square"),
    Comparison("Muon, 1:4 matrices", "muon", {"plain": (20, "below 1")}, steps=20, shapes="1:4"),
    Comparison(
        "Shampoo, hidden matrices",
        "shampoo",
        {
            "pytorch_optimizer Shampoo": (1, _SHAMPOO_AIM),
            "pytorch_optimizer Scalable, SVD": (1, _SHAMPOO_AIM),
            "pytorch_optimizer Scalable": (1, _SHAMPOO_AIM),
        },
        steps=1,
    ),
    Comparison("SOAP, hidden matrices", "soap", {"pytorch_optimizer SOAP": (10, _SHAMPOO_AIM)}, steps=10),
)
ALL_RULES = "all rules"


def run(settings: Settings, say: Callable[[str], None]) -> list[Quantity]:
    """Measure; see the module's text.

    Args:
        settings: shape of the model and amount of measuring.
        say: is told of every round, and of what is left out.
    """
    from tests.benchmarks.optimizer_memory import measure_memory

    comparisons = [comparison for comparison in COMPARISONS if _possible(comparison)]
    if len(comparisons) < len(COMPARISONS):
        say(MISSING)

    def take() -> tuple[dict[str, dict[str, float]], float, str]:
        names = [*(comparison.name for comparison in comparisons), ALL_RULES]
        turns = {
            name: measure(FUNCTION, {"name": name, "settings": asdict(settings)}, settings.threads) for name in names
        }
        milliseconds = {name: turn["milliseconds"] for name, turn in turns.items()}
        told = [
            f"{comparison.name} {milliseconds[comparison.name][OURS]:,.1f} ms, "
            + ", ".join(f"{other} {milliseconds[comparison.name][other]:,.1f}" for other in comparison.others)
            for comparison in comparisons
        ]
        return milliseconds, max(turn["others"] for turn in turns.values()), "; ".join(told)

    rounds = take_rounds(settings, take, say)
    return quantities(rounds, comparisons) + measure_memory(settings, say)


def _possible(comparison: Comparison) -> bool:
    needed = any(other.startswith(LIBRARY) for other in comparison.others)
    return not needed or importlib.util.find_spec(LIBRARY) is not None


def quantities(rounds: list[dict[str, dict[str, float]]], comparisons: list[Comparison]) -> list[Quantity]:
    """The figures of all rounds: comparison -> contender -> milliseconds of a step, in order."""
    found = []
    for comparison in comparisons:
        each = _by_contender([turn[comparison.name] for turn in rounds])
        ratios = [ratio(OURS, other, each, aim) for other, (_, aim) in comparison.others.items()]
        found.append(quantity(comparison.name, "ms", each, [*ratios, ratio(OURS, AGAIN, each)]))
    each = _by_contender([turn[ALL_RULES] for turn in rounds])
    relative = [ratio(rule, ADAMW, each) for rule in each if rule != ADAMW]
    return [*found, quantity("a step of the whole model", "ms", each, relative)]


def _by_contender(turns: list[dict[str, float]]) -> dict[str, list[float]]:
    return {contender: [turn[contender] for turn in turns] for contender in turns[0]}


def take_turn(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """One round of one comparison: "milliseconds" of a step by contender, and "others" (see `StepClock`)."""
    from mup_lightning.training.hardware import tune_allocator

    tune_allocator()
    from tests.benchmarks.processor import OtherPrograms

    s = Settings(**settings)
    timed = _all_rules(s) if name == ALL_RULES else contenders(_named(name), s)
    for contender, _ in dict(timed.values()).items():
        contender.seconds(max(1, s.warmup))
    processor = OtherPrograms()
    milliseconds = {key: 1e3 * contender.seconds(s.steps * steps) for key, (contender, steps) in timed.items()}
    return {"milliseconds": milliseconds, "others": processor.cores()}


def _named(name: str) -> Comparison:
    return next(comparison for comparison in COMPARISONS if comparison.name == name)


def contenders(comparison: Comparison, settings: Settings) -> dict[str, tuple[Any, int]]:
    """Name -> (contender, steps), in the order of their turns; the control is ours once more."""
    from mup_lightning.config.optimizers import MuonOptions, RuleOptions
    from mup_lightning.spectral.roles import Role
    from tests.benchmarks import optimizer_contenders as made

    makers = {
        "torch fused": made.torch_adamw,
        "torch": made.torch_muon,
        "plain": made.PlainMuon,
        "pytorch_optimizer Shampoo": made.library_shampoo,
        "pytorch_optimizer Scalable, SVD": made.library_scalable(use_svd=True),
        "pytorch_optimizer Scalable": made.library_scalable(use_svd=False),
        "pytorch_optimizer SOAP": made.library_soap,
    }

    def which(rows: int, columns: int, role: Role) -> bool:
        wanted = comparison.shapes == "all" or (comparison.shapes == "square") == (rows == columns)
        return role is Role.HIDDEN and wanted

    workload = made.Workload(settings, None if comparison.shapes is None else which)
    options = RuleOptions(muon=MuonOptions(dtype="bfloat16" if comparison.bfloat16 else "auto"))
    ours = workload.ours(comparison.rule, options)
    others = {other: (workload.theirs(makers[other]), steps) for other, (steps, _) in comparison.others.items()}
    return {OURS: (ours, comparison.steps), **others, AGAIN: (ours, comparison.steps)}


def _all_rules(settings: Settings) -> dict[str, tuple[Any, int]]:
    """Every rule as in training: matrix rules on the hidden matrices, AdamW for the rest."""
    from tests.benchmarks.optimizer_contenders import Workload

    workload = Workload(settings, draws=4)
    return {rule: (workload.ours(rule), 1 if rule == "shampoo" else 10) for rule in RULES}
