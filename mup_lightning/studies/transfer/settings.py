"""Settings of `mup-lightning report transfer` and `mup-lightning report best`."""

from dataclasses import dataclass
from pathlib import Path

from mup_lightning.errors import UserError
from mup_lightning.typed import NonNegativeFloat, PositiveFloat, Typed

SLOPE_TOLERANCE, REGRET_TOLERANCE = 0.15, 0.02


@dataclass
class BestSettings(Typed, prefix="--"):
    """Print the lowest mean loss of each group and the losses of the other values.

    Attributes:
        results: results.csv of `mup-lightning sweep`, or its folder.
        json: print JSON.
        markdown: print tables in Markdown.
    """

    results: Path
    json: bool = False
    markdown: bool = False

    def __post_init__(self) -> None:
        """Raise UserError if two forms of output are requested, or a value is out of bounds."""
        super().__post_init__()
        if self.json and self.markdown:
            raise UserError("--json and --markdown are two forms of the same report; choose one")


@dataclass
class TransferSettings(BestSettings, prefix="--"):
    """Print, for each group, the optimum of each size, its slope over the sizes, the regret, the noise and a verdict.

    Attributes:
        results: results.csv of a sweep or its folder; or a .csv with the columns parametrization, axis, size,
            log2_value, seed, loss (empty: diverged); or the published losses (.json).
        json: print JSON.
        markdown: print tables in Markdown.
        out: folder for figures and transfer.json; null: none.
        noise: standard deviation between seeds, nats, for groups that have one seed; null: unknown.
        slope_tolerance: slope that still counts as transfer, powers of two per doubling.
        regret_tolerance: regret that still counts as transfer, nats.
    """

    out: Path | None = None
    noise: NonNegativeFloat | None = None
    slope_tolerance: PositiveFloat = SLOPE_TOLERANCE
    regret_tolerance: PositiveFloat = REGRET_TOLERANCE
