"""What works with what, in one place: training refuses by it, and `mup-lightning support` prints it.

A whole-matrix rule is only itself on whole matrices, and a strategy that parts parameters hands an optimizer flat
pieces of them. So the two go together only where the strategy also tells the optimizer where the pieces are, and
matrices can come together at one process. This is looked up before the first step: no rule becomes another one
silently.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from mup_lightning.config.schema import Config, TrainerConfig
from mup_lightning.errors import UserError
from mup_lightning.optim.optimizer import RULES

PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class Parting:
    """What a strategy does to parameters.

    Attributes:
        parts: what a process holds only a part of; what is stepped is flat wherever this is not empty.
        many: whether it runs more than one process.
        known: whether it tells the optimizer which numbers of which parameter a flat piece holds
            (`HybridOptimizer.set_layout`).
    """

    parts: tuple[str, ...]
    many: bool = True
    known: bool = True


STRATEGIES: dict[str, Parting] = {
    "single": Parting((), many=False),
    "ddp": Parting(()),
    "zero0": Parting(()),
    "zero1": Parting(("states",)),
    "zero2": Parting(("states", "gradients")),
    "zero3": Parting(("states", "gradients", "weights")),
}
"""Every value of trainer.strategy."""

REMARKS = {
    ("soap", "bf16"): "runs, but has not been compared with one process: rounding chooses SOAP's eigenvectors",
}
"""(rule, precision) -> what should be known of it."""


@dataclass(frozen=True)
class Support:
    """One combination.

    Attributes:
        rule: recipe.optimizer.
        strategy: trainer.strategy.
        precision: trainer.precision.
        refusal: why it is refused, and what to use instead; None: it works.
        work: how processes part the optimizer's step.
        other_processes: whether a checkpoint goes on in another number of processes, or under another strategy.
        compile: whether the blocks can be compiled.
        remark: what should be known of it, or None.
    """

    rule: str
    strategy: str
    precision: str
    refusal: str | None
    work: str
    other_processes: bool
    compile: bool
    remark: str | None


def refusal(rule: str, strategy: str) -> str | None:
    """Why a rule cannot run under a strategy, and what to use instead; None: it can."""
    parting = STRATEGIES[strategy]
    if not RULES[rule].whole_matrix or not parting.parts or parting.known:
        return None
    whole = ", ".join(name for name, other in STRATEGIES.items() if other.many and not other.parts)
    return (
        f"recipe.optimizer {rule} steps whole matrices, but trainer.strategy {strategy} gives each process a part of "
        f"the {parting.parts[-1]} and does not say which; use {whole}, or an elementwise optimizer ("
        f"{', '.join(name for name, other in RULES.items() if not other.whole_matrix)})"
    )


def support(rule: str, strategy: str, precision: str) -> Support:
    """What is known of one combination."""
    parting, whole = STRATEGIES[strategy], RULES[rule].whole_matrix
    if not parting.many:
        work = "one process"
    elif not whole:
        work = "each its part of all numbers" if parting.parts else "each all of it"
    else:
        work = "each its share of the matrices" + (", sent to it whole" if parting.parts else "")
    refused = refusal(rule, strategy)
    return Support(
        rule=rule,
        strategy=strategy,
        precision=precision,
        refusal=refused,
        work=work,
        other_processes=refused is None,  # checkpoints name numbers by parameter, not by process: training/shards.py
        compile=refused is None,  # blocks are compiled in place, before a strategy wraps them
        remark=REMARKS.get((rule, precision)),
    )


def table() -> Iterator[Support]:
    """Every rule at every strategy and precision."""
    for rule in RULES:
        for strategy in STRATEGIES:
            for precision in PRECISIONS:
                yield support(rule, strategy, precision)


def check(config: Config) -> None:
    """Refuse a resolved configuration that cannot run as it says, before anything is built.

    Raises:
        UserError: the rule cannot run under the strategy, or this machine lacks what precision or compile need.
    """
    for problem in (
        refusal(config.recipe.optimizer, config.trainer.strategy),
        _no_compiler(config.trainer),
        _no_bf16(config.trainer),
    ):
        if problem:
            raise UserError(problem)


def _no_compiler(trainer: TrainerConfig) -> str | None:
    """torch.compile makes C++ on a CPU and Triton kernels on a GPU, and fails inside the first step without."""
    if trainer.compile != "on":
        return None
    if trainer.accelerator == "cpu":
        found, needed = any(map(shutil.which, ("g++", "clang++", "c++"))), "a C++ compiler (g++ or clang++)"
    else:
        from torch.utils._triton import has_triton

        found, needed = has_triton(), "triton and a GPU that it supports"
    return None if found else f"trainer.compile is on, but needs {needed}, which is not here; set trainer.compile off"


def _no_bf16(trainer: TrainerConfig) -> str | None:
    if trainer.precision != "bf16" or trainer.accelerator != "gpu":
        return None
    import torch

    if torch.cuda.is_bf16_supported(including_emulation=False):
        return None
    name = torch.cuda.get_device_name()
    return f"trainer.precision is bf16, but {name} has no bfloat16 arithmetic; set trainer.precision fp32"


def as_plain() -> list[dict[str, Any]]:
    """`table` as plain values, ready for JSON."""
    return [asdict(entry) for entry in table()]


COLUMNS = ("optimizer", "strategies", "fp32", "bf16", "other number of processes", "compile", "who does its step")


def rows() -> list[list[str]]:
    """`table` for people, under `COLUMNS`: strategies that a rule finds equal share a row."""
    result: list[list[str]] = []
    for rule in RULES:
        alike: dict[tuple[str, ...], list[str]] = {}
        for strategy in STRATEGIES:
            of = {precision: support(rule, strategy, precision) for precision in PRECISIONS}
            words = tuple(_word(of[precision]) for precision in PRECISIONS)
            any_of = of["fp32"]
            key = (*words, _yes(any_of.other_processes), _yes(any_of.compile), any_of.work)
            alike.setdefault(key, []).append(strategy)
        result += [[rule, " ".join(names), *key] for key, names in alike.items()]
    return result


def notes() -> list[str]:
    """What the marks in `rows` mean, and what the table leaves out."""
    remarks = [f"* {rule} in {precision}: {text}" for (rule, precision), text in REMARKS.items()]
    refused = dict.fromkeys(entry.refusal for entry in table() if entry.refusal)
    return [
        *refused,
        *remarks,
        "Continued in another number of processes, or under another strategy, sums round differently, and dropout "
        "draws anew; with the same ones it goes on to the bit in fp32. data.batch_size must be a multiple of "
        "data.micro_batch times the processes.",
        "bf16 is autocast round float32 weights. tests/distributed compares every row with one process, and compiled "
        "training with eager training for one optimizer under each strategy: what is compiled does not know of them.",
    ]


def markdown() -> str:
    """`rows` and `notes` as Markdown."""
    lines = [list(COLUMNS), ["---"] * len(COLUMNS), *rows()]
    table_lines = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([*table_lines, "", *(f"- {note.removeprefix('* ')}" for note in notes())])


def _word(entry: Support) -> str:
    return "REFUSED" if entry.refusal else "yes*" if entry.remark else "yes"


def _yes(value: bool) -> str:
    return "yes" if value else "no"
