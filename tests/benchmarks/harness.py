"""What all cases share: settings, rounds in which contenders take turns, and figures with their spread.

In each round the contenders are measured next to each other in time. A ratio is taken in every round; a control, one
contender against itself, shows how far to trust the others.
"""

import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import cpuinfo
import psutil

from mup_lightning import tables
from mup_lightning.config.schema import TokenizerName
from mup_lightning.versions import versions

DISTURBED = 0.1
"""Cores kept busy by other programs from which on a round counts as disturbed."""

Turn = dict[str, dict[str, float]]
"""Quantity -> contender -> its value in one round."""


@dataclass(frozen=True)
class Settings:
    """Shape, batch and amount of measuring; a case may add to it.

    Attributes:
        width: of the model.
        depth: blocks of the model.
        context: tokens in a sequence.
        batch: sequences in a step.
        tokenizer: gpt2 (50304 rows in the embedding) or bytes (256).
        rounds: how often all contenders take turns; each round gives one figure per contender.
        steps: timed in each turn.
        warmup: steps before them.
        threads: CPU threads of torch.
    """

    width: int
    depth: int
    context: int
    batch: int
    tokenizer: TokenizerName
    rounds: int
    steps: int
    warmup: int
    threads: int = 2

    @property
    def tokens(self) -> int:
        """Trained on in one step."""
        return self.batch * self.context


@dataclass(frozen=True)
class Quantity:
    """Something that is measured of all contenders.

    Attributes:
        name: such as "speed".
        unit: such as "tokens/s".
        ratios: (contender, contender, aim): the first over the second, and what that should be; "" for nothing.
        aims: contender -> what its own value should be.
    """

    name: str
    unit: str
    ratios: Sequence[tuple[str, str, str]] = ()
    aims: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """Something to measure.

    Attributes:
        description: in one line.
        default: settings of a measurement that counts.
        quick: settings that only show that it works.
        turn: one round.
        quantities: what `turn` and `once` return, in order.
        once: measured in one round alone, because it does not vary.
    """

    description: str
    default: Settings
    quick: Settings
    turn: Callable[[Settings], Turn]
    quantities: Callable[[Settings], list[Quantity]]
    once: Callable[[Settings], Turn] = lambda settings: {}


def run_case(case: Case, settings: Settings, say: Callable[[str], None], patience: float = 0.0) -> dict[str, Any]:
    """Take all rounds.

    Args:
        case: what to measure.
        settings: at which sizes, and how often.
        say: receives a line for every round.
        patience: seconds for which rounds that other programs disturbed are repeated.

    Returns:
        Plain values: "description", "settings", "quantities".
    """
    deadline = time.monotonic() + patience
    rounds: list[Turn] = []
    while len(rounds) < settings.rounds:
        others = other_programs()
        turn = case.turn(settings)
        busy = others()
        again = busy > DISTURBED and time.monotonic() < deadline
        figures = "; ".join(f"{name}: {_words(values)}" for name, values in turn.items())
        note = f" (other programs kept {busy:.1f} cores busy{', so once more' if again else ''})"
        say(f"round {len(rounds) + 1} of {settings.rounds}: {figures}{note if busy > DISTURBED else ''}")
        if not again:
            rounds.append(turn | {"other programs": {"all": busy}})
    once = case.once(settings)
    quantities = []
    for quantity in (*case.quantities(settings), Quantity("other programs", "cores")):
        turns = [turn[quantity.name] for turn in (rounds if quantity.name in rounds[0] else [once]) if turn]
        if turns:
            quantities.append(summary(quantity, turns))
    return {"description": case.description, "settings": asdict(settings), "quantities": quantities}


def summary(quantity: Quantity, turns: list[dict[str, float]]) -> dict[str, Any]:
    """A quantity over all rounds, in plain values: every contender's spread, and that of every ratio."""
    return {
        "name": quantity.name,
        "unit": quantity.unit,
        "measured": {who: _spread([turn[who] for turn in turns], quantity.aims.get(who, "")) for who in turns[0]},
        "ratios": {
            f"{of} / {to}": _spread([turn[of] / turn[to] for turn in turns], aim)
            for of, to, aim in quantity.ratios
            if of in turns[0] and to in turns[0]
        },
    }


def table(name: str, result: dict[str, Any], *, aims: bool = True) -> str:
    """The result of a case for the terminal: median, lowest and highest of the rounds."""
    settings = ", ".join(f"{key} {value}" for key, value in result["settings"].items())
    lines = [f"{name}: {result['description']}", settings]
    for quantity in result["quantities"]:
        rows = [[f"{quantity['name']} ({quantity['unit']})", "median", "lowest", "highest", "aim" if aims else ""]]
        for who, found in (*quantity["measured"].items(), *quantity["ratios"].items()):
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


def _words(values: dict[str, float]) -> str:
    return ", ".join(f"{who} {_figure(value)}" for who, value in values.items())


def _figure(value: float) -> str:
    """Four digits or so."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 100 else f"{value:.3f}"
