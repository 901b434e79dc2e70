"""What all cases share: settings, rounds in which contenders take turns, and figures with their spread.

In each round the contenders are measured next to each other in time. A ratio is taken in every round; a control, one
contender against itself, shows how far to trust the others.
"""

import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import cpuinfo
import psutil

from mup_lightning import tables
from mup_lightning.config.data import TokenizerName
from mup_lightning.config.load import build_config
from mup_lightning.config.schema import Config
from mup_lightning.versions import versions

OTHERS = "other programs (cores)"

Turn = dict[str, dict[str, float]]
"""Quantity with its unit -> contender -> its value in one round."""


@dataclass(frozen=True)
class Settings:
    """Shape, batch and amount of measuring."""

    width: int
    depth: int
    context: int
    batch: int  # sequences in a step
    tokenizer: TokenizerName  # gpt2 (50304 rows in the embedding) or bytes (256)
    rounds: int  # how often all contenders take turns; each round gives one figure per contender
    steps: int  # timed in each turn
    warmup: int  # steps before them
    threads: int = 2  # CPU threads of torch

    @property
    def tokens(self) -> int:
        """Trained on in one step."""
        return self.batch * self.context


QUICK = Settings(width=32, depth=2, context=16, batch=2, tokenizer="bytes", rounds=1, steps=1, warmup=1, threads=1)
"""Settings that only show that a case works."""


def make_config(s: Settings, corpus: str = "none", changes: dict[str, Any] | None = None) -> Config:
    """AdamW on a CPU, each batch in one pass, with the steps that a clock needs; changes: {"section.key": value}."""
    values = {
        "model": {"width": s.width, "depth": s.depth, "context": s.context},
        "recipe": {"optimizer": "adamw", "lr": 2**-8},
        "data": {"path": corpus, "tokenizer": s.tokenizer, "batch_size": s.batch, "micro_batch": s.batch},
        "trainer": {"max_steps": s.warmup + s.steps + 1, "accelerator": "cpu"},
    }
    return build_config([values, changes or {}])


@dataclass(frozen=True)
class Case:
    """Something to measure."""

    description: str
    default: Settings  # of a measurement that counts
    turn: Callable[[Settings], Turn]  # one round
    ratios: dict[str, Sequence[tuple[str, str, str]]] = field(default_factory=dict)
    """Quantity -> (contender, contender, aim): the first over the second, and what that should be."""


def run_case(case: Case, settings: Settings) -> dict[str, Any]:
    """Take all rounds, each with a line on stderr: plain values, "description", "settings" and "quantities"."""
    rounds: list[Turn] = []
    for number in range(1, settings.rounds + 1):
        others = other_programs()
        turn = case.turn(settings)
        rounds.append(turn | {OTHERS: {"all": others()}})
        figures = "; ".join(f"{name}: {_words(values)}" for name, values in rounds[-1].items())
        print(f"round {number} of {settings.rounds}: {figures}", file=sys.stderr, flush=True)
    quantities = {name: summary([turn[name] for turn in rounds], case.ratios.get(name, ())) for name in rounds[0]}
    return {"description": case.description, "settings": asdict(settings), "quantities": quantities}


def summary(turns: list[dict[str, float]], ratios: Sequence[tuple[str, str, str]]) -> dict[str, Any]:
    """A quantity over all rounds: every contender's spread, and that of every ratio."""
    found = {who: _spread([turn[who] for turn in turns], "") for who in turns[0]}
    for of, to, aim in ratios:
        if {of, to} <= turns[0].keys():
            found[f"{of} / {to}"] = _spread([turn[of] / turn[to] for turn in turns], aim)
    return found


def table(name: str, result: dict[str, Any], *, aims: bool = True) -> str:
    """The result of a case for the terminal: median, lowest and highest of the rounds."""
    lines = [f"{name}: {result['description']}", _words(result["settings"])]
    for quantity, spreads in result["quantities"].items():
        rows = [[quantity, "median", "lowest", "highest", "aim" if aims else ""]]
        for who, found in spreads.items():
            figures = [_figure(found[key]) for key in ("median", "lowest", "highest")]
            rows.append([who, *figures, found["aim"] if aims else ""])
        lines += ["", tables.text(rows)]
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """What the figures were measured on: without it they mean nothing."""
    return {
        "processor": cpuinfo.get_cpu_info().get("brand_raw", "unknown"),
        "cores": len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else os.cpu_count(),
        "memory_mb": round(psutil.virtual_memory().total / 1e6),
        "system": f"{platform.system()} {platform.machine()}",
        "load": round(psutil.getloadavg()[0], 2),
        "versions": versions(),
    }


def other_programs() -> Callable[[], float]:
    """How many cores other programs keep busy on average between this call and that of its result.

    Counted is all processor time but that of this process and of the processes that it has waited for.
    """

    def others() -> float:
        times = psutil.cpu_times()
        kinds = ("user", "nice", "system", "irq", "softirq", "steal")
        return sum(getattr(times, kind, 0.0) for kind in kinds) - sum(os.times()[:4])

    began, before = time.perf_counter(), others()
    return lambda: max(0.0, (others() - before) / max(1e-9, time.perf_counter() - began))


def _spread(values: list[float], aim: str) -> dict[str, Any]:
    return {"median": median(values), "lowest": min(values), "highest": max(values), "values": values, "aim": aim}


def _words(values: dict[str, Any]) -> str:
    return ", ".join(f"{who} {_figure(value) if isinstance(value, float) else value}" for who, value in values.items())


def _figure(value: float) -> str:
    """Four digits or so."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 100 else f"{value:.3f}"
