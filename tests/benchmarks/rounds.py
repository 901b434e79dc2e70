"""Rounds in which the contenders take turns; those that other programs disturbed are repeated while patience lasts."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from tests.benchmarks.processor import OtherPrograms
from tests.benchmarks.settings import Settings

DISTURBED = 0.1
"""Cores kept busy by other programs from which on a measurement counts as disturbed."""

_LOOK = 2.0
"""Seconds over which the machine is looked at before a round."""

T = TypeVar("T")


def take_rounds(settings: Settings, take: Callable[[], tuple[T, float, str]], say: Callable[[str], None]) -> list[T]:
    """Take all rounds.

    Args:
        settings: how many rounds, and how much patience.
        take: takes one; returns it, the cores that other programs kept busy in it, and its figures in words.
        say: is told of every round.
    """
    deadline = time.monotonic() + 60 * settings.patience
    taken: list[T] = []
    while len(taken) < settings.rounds:
        _wait_for_quiet(deadline)
        found, others, figures = take()
        text = f"round {len(taken) + 1} of {settings.rounds}: {figures}"
        if others > DISTURBED:
            text += f" (other programs kept {others:.1f} cores busy)"
        if others > DISTURBED and time.monotonic() < deadline:
            text += "; once more"
        else:
            taken.append(found)
        say(text)
    return taken


def _wait_for_quiet(deadline: float) -> None:
    while time.monotonic() < deadline:
        processor = OtherPrograms()
        time.sleep(_LOOK)
        if processor.cores() < DISTURBED:
            return
