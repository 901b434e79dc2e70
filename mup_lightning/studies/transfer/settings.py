"""Settings of `mup-lightning report`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jsonargparse.typing import NonNegativeFloat, PositiveFloat

SLOPE_TOLERANCE, REGRET_TOLERANCE = 0.15, 0.02


@dataclass
class TransferSettings:
    """Does the best base value stay where it is while the model grows?

    For every group of a table: the optimum of each size, how fast it moves with the size, what it costs to tune small,
    the noise, and a verdict.

    Attributes:
        results: results.csv of a sweep or its folder; or a .csv with the columns parametrization, axis, size,
            log2_value, seed, loss (empty: diverged); or the published losses (.json).
        out: folder for figures and transfer.json.
        json: print JSON.
        markdown: print tables in Markdown.
        noise: standard deviation between seeds, nats, for groups that have one seed.
        slope_tolerance: slope that still counts as transfer, powers of two per doubling.
        regret_tolerance: regret that still counts as transfer, nats.
    """

    results: Path
    out: Path | None = None
    json: bool = False
    markdown: bool = False
    noise: NonNegativeFloat | None = None
    slope_tolerance: PositiveFloat = SLOPE_TOLERANCE
    regret_tolerance: PositiveFloat = REGRET_TOLERANCE


@dataclass
class BestSettings:
    """The best value of every group, with the losses of the others.

    Attributes:
        results: results.csv of `mup-lightning sweep`, or its folder.
        json: print JSON.
        markdown: print a Markdown table.
    """

    results: Path
    json: bool = False
    markdown: bool = False
