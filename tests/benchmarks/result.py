"""Figures with their spread: medians over rounds, and ratios taken round by round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Spread:
    """Values of the rounds, in order, and what they come to."""

    median: float
    lowest: float
    highest: float
    values: list[float]


@dataclass(frozen=True)
class Ratio:
    """One contender over another. The two values of a round were measured next to each other in time.

    Attributes:
        name: "a / b".
        spread: of the rounds' ratios.
        aim: what it shall be, in words; empty where nothing is asked of it.
    """

    name: str
    spread: Spread
    aim: str = ""


@dataclass(frozen=True)
class Quantity:
    """Something measured of all contenders.

    Attributes:
        name: such as "speed".
        unit: such as "tokens/s".
        measured: contender -> its values.
        ratios: between contenders.
        aims: contender -> what its value shall be, in words, where the value itself is what is asked for.
    """

    name: str
    unit: str
    measured: dict[str, Spread]
    ratios: list[Ratio] = field(default_factory=list)
    aims: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class CaseResult:
    """What a case came to.

    Attributes:
        case: its name.
        description: its first line.
        settings: what it was measured at.
        quantities: the figures.
    """

    case: str
    description: str
    settings: dict[str, Any]
    quantities: list[Quantity]


def spread(values: Sequence[float]) -> Spread:
    """Median and range of the rounds' values, at least one."""
    return Spread(median(values), min(values), max(values), list(values))


def ratio(of: str, to: str, rounds: dict[str, list[float]], aim: str = "") -> Ratio:
    """The ratio of two contenders in each round.

    Args:
        of: contender above the line.
        to: contender below it.
        rounds: contender -> values, one per round.
        aim: see `Ratio`.
    """
    pairs = zip(rounds[of], rounds[to], strict=True)
    return Ratio(f"{of} / {to}", spread([above / below for above, below in pairs]), aim)


def quantity(name: str, unit: str, rounds: dict[str, list[float]], ratios: list[Ratio]) -> Quantity:
    """A quantity from the contenders' values, one per round."""
    return Quantity(name, unit, {contender: spread(values) for contender, values in rounds.items()}, ratios)
