"""The table of cases: a new one is a module beside this one, and a line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from tests.benchmarks import depth, feature_norms, optimizers, spectral_norms, strategies, trainer
from tests.benchmarks.result import CaseResult, Quantity
from tests.benchmarks.settings import Settings


@dataclass(frozen=True)
class Case:
    """Something to measure.

    Attributes:
        description: in one line.
        default: settings of a measurement that counts.
        quick: settings that only show that it works.
        run: settings and a function that is told of the progress -> the figures.
    """

    description: str
    default: Settings
    quick: Settings
    run: Callable[[Settings, Callable[[str], None]], list[Quantity]]


CASES: dict[str, Case] = {
    "trainer": Case(
        "our trainer with its default callbacks against a bare PyTorch loop",
        trainer.DEFAULT,
        trainer.QUICK,
        trainer.run,
    ),
    "depth": Case("what a layer costs in a deep model against a shallow one", depth.DEFAULT, depth.QUICK, depth.run),
    "feature_norms": Case(
        "what the feature norms cost at their default interval",
        feature_norms.DEFAULT,
        feature_norms.QUICK,
        feature_norms.run,
    ),
    "spectral_norms": Case(
        "what the spectral monitor costs at its default interval",
        spectral_norms.DEFAULT,
        spectral_norms.QUICK,
        spectral_norms.run,
    ),
    "optimizers": Case(
        "what a step of each optimizer costs, against others' code, and its memory",
        optimizers.DEFAULT,
        optimizers.QUICK,
        optimizers.run,
    ),
    "strategies": Case(
        "ZeRO against ddp on two processes: time and memory; matrix work shared against replicated",
        strategies.DEFAULT,
        strategies.QUICK,
        strategies.run,
    ),
}
"""Name -> case, in the order in which they run."""


def run_case(
    name: str,
    say: Callable[[str], None],
    *,
    quick: bool = False,
    rounds: int | None = None,
    steps: int | None = None,
    threads: int | None = None,
    patience: float | None = None,
) -> CaseResult:
    """Run one case.

    Args:
        name: a key of `CASES`.
        say: is told of the progress.
        quick: small and few, for a look at whether it works.
        rounds: None for the case's own.
        steps: None for the case's own.
        threads: None for the case's own.
        patience: minutes; None for the case's own, which is 0.

    Raises:
        UserError: a value is below 1, or a benchmark process failed.
    """
    case = CASES[name]
    given: dict[str, Any] = {"rounds": rounds, "steps": steps, "threads": threads, "patience": patience}
    settings = case.quick if quick else case.default
    settings = replace(settings, **{key: value for key, value in given.items() if value is not None})
    quantities = case.run(settings, lambda text: say(f"{name}, {text}"))
    return CaseResult(name, case.description, asdict(settings), quantities)
