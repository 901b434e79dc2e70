"""Exponents: how the norm of a feature, and of its change, grows with the size of the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from mup_lightning.model.taps import ATTENTION, EMBEDDING, FINAL_NORM, LOGITS, MLP, RESIDUAL
from mup_lightning.student import student_t

QUANTITIES = ("init", "feature", "change")
"""What is fitted of a feature: ‖h_0‖_R before the first step, ‖h_T‖_R and ‖h_T − h_0‖_R after the last one."""


@dataclass(frozen=True)
class Fit:
    """An exponent, with its 95 % interval."""

    exponent: float
    low: float
    high: float


def fit(sizes: Sequence[float], values: Sequence[Sequence[float]]) -> Fit:
    """Fit size -> value as c_seed · size^a: one exponent, and a constant for every seed.

    The interval is that of an ordinary least-squares slope: the scatter of all points about the lines. A run's noise
    comes from its own random weights, so runs of one seed at two sizes scatter independently but for what they share,
    such as the order of samples, which the seed's constant takes up.

    Args:
        sizes: P sizes, at least 3.
        values: P values above 0 for each of S seeds.
    """
    x_P = np.log(np.asarray(sizes, dtype=float))
    y_SP = np.log(np.asarray(values, dtype=float))
    seeds, points = y_SP.shape
    x_P = x_P - x_P.mean()
    y_SP = y_SP - y_SP.mean(axis=1, keepdims=True)
    spread = seeds * float((x_P**2).sum())
    slope = float((y_SP @ x_P).sum()) / spread
    freedom = seeds * (points - 1) - 1
    deviation = math.sqrt(float(((y_SP - slope * x_P) ** 2).sum()) / freedom / spread)
    half = student_t(freedom) * deviation
    return Fit(slope, slope - half, slope + half)


def features(axis: str) -> dict[str, Callable[[int], list[str]]]:
    """Name of a feature -> the taps it is taken from in a model of some depth; of several, the largest counts.

    Where the depth grows, blocks can be compared at equal fractions of it. So the residual stream has no "first" there:
    behind the first block it has passed 1/L of the branches, and is nearer to the embedding the deeper the model.
    """
    result: dict[str, Callable[[int], list[str]]] = {EMBEDDING: lambda depth: [EMBEDDING]}
    for point in (ATTENTION, MLP, RESIDUAL):
        for where, taps in _PLACES.items():
            if point != RESIDUAL or taps is not _first or axis == "width":
                result[f"{point}, {where}"] = partial(taps, point)
    return result | {FINAL_NORM: lambda depth: [FINAL_NORM], LOGITS: lambda depth: [LOGITS]}


def _first(point: str, depth: int) -> list[str]:
    return [f"{point}/0"]


def _middle(point: str, depth: int) -> list[str]:
    """Half of the way: the residual stream behind half of the blocks, and the branches that are given it."""
    return [f"{point}/{max(0, depth // 2 - (point == RESIDUAL))}"]


def _last(point: str, depth: int) -> list[str]:
    return [f"{point}/{depth - 1}"]


def _all(point: str, depth: int) -> list[str]:
    return [f"{point}/{layer}" for layer in range(depth)]


_PLACES = {"first block": _first, "middle block": _middle, "last block": _last, "largest": _all}


def value(run: dict[str, Any], taps: list[str], quantity: str, step: int = -1) -> float:
    """A quantity of one run.

    Args:
        run: from `measure`.
        taps: of the feature; the largest counts.
        quantity: of QUANTITIES.
        step: after which feature and change are taken; -1: after the last.
    """
    curves, at = (run["changes"], step) if quantity == "change" else (run["norms"], 0 if quantity == "init" else step)
    return max(curves[tap][at] for tap in taps)
