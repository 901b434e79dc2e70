"""How rates follow the batch B and the horizon T of a run: a law that was fitted to runs."""

from dataclasses import dataclass
from pathlib import Path

from mup_lightning.errors import UserError, located
from mup_lightning.files import read_json
from mup_lightning.typed import PositiveFloat, Typed, build

AXES = ("width", "depth", "tokens", "batch")
"""What a law may be over: n, L, T (tokens of the run) and B (tokens of an optimizer step)."""

WHAT = "a law of the best learning rate, as mup-lightning tune writes it"


@dataclass
class Estimate:
    """An exponent with its interval, both ends finite."""

    estimate: float
    low: float
    high: float


@dataclass
class Law(Typed, prefix="law."):
    """How the best base value moves with a model and its run, as powers of their sizes.

    Attributes:
        optimizer: of the runs that it was fitted to.
        value: the base value, recipe.lr.
        exponents: axis -> its exponent; null where the runs did not differ.
        ranges: axis -> the least and the largest of the runs.
        at: axis -> the middle of the runs, where the fit is surest.
        source: where the runs are, in words.
    """

    optimizer: str
    value: str
    exponents: dict[str, Estimate | None]
    ranges: dict[str, tuple[PositiveFloat, PositiveFloat]]
    at: dict[str, PositiveFloat]
    source: str

    def __post_init__(self) -> None:
        """Raise UserError where an axis is missing, or unknown."""
        super().__post_init__()
        for name in ("exponents", "ranges", "at"):
            if set(getattr(self, name)) != set(AXES):
                raise UserError(
                    f"law.{name} has {', '.join(getattr(self, name)) or 'nothing'}; expected {', '.join(AXES)}"
                )


def read_law(file: Path) -> Law:
    """The law in a JSON file. Raises UserError where it cannot be read, is damaged, or holds something else."""
    content = read_json(file, WHAT)
    with located(file):
        return build(Law, content, "law.")
