"""Exponents: how the norm of a feature, and of its change, grows with the size of the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from mup_lightning.model.taps import ATTENTION, EMBEDDING, FINAL_NORM, LOGITS, MLP, RESIDUAL
from mup_lightning.studies.fit import student_t

QUANTITIES = ("init", "feature", "change")
"""What is fitted of a feature: ‖h_0‖_R before the first step, ‖h_T‖_R and ‖h_T − h_0‖_R after the last one."""


@dataclass(frozen=True)
class Fit:
    """An exponent.

    Attributes:
        exponent: over all sizes.
        low: where its 95 % interval begins.
        high: where it ends.
        last: the exponent between the two largest sizes alone; no line is exact, and there it is nearest to the limit.
    """

    exponent: float
    low: float
    high: float
    last: float


def fit(sizes: Sequence[float], values: Sequence[Sequence[float]]) -> Fit:
    """Fit size -> value as c_seed · size^a: a least-squares line for every seed, and the mean of their slopes.

    The interval is that of a mean of S independent numbers (t, S - 1 degrees of freedom). The scatter of all points
    about the lines would have more degrees, but takes every point's noise for the same and independent: small models
    are the noisier ones, a bend in the curve would count as noise, and runs of one seed share their order of samples.

    Args:
        sizes: P sizes, at least 3.
        values: P values above 0 for each of S seeds, at least 2.
    """
    x_P = np.log(np.asarray(sizes, dtype=float))
    y_SP = np.log(np.asarray(values, dtype=float))
    centred_P = x_P - x_P.mean()
    slopes_S = y_SP @ centred_P / (centred_P**2).sum()
    slope, seeds = float(slopes_S.mean()), len(slopes_S)
    half = student_t(seeds - 1) * float(slopes_S.std(ddof=1)) / math.sqrt(seeds)
    last = float((y_SP[:, -1] - y_SP[:, -2]).mean() / (x_P[-1] - x_P[-2]))
    return Fit(slope, slope - half, slope + half, last)


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
