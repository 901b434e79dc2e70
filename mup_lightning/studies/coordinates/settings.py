"""What a coordinate check varies, how often it repeats it, and what it still accepts. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mup_lightning.errors import UserError


@dataclass
class CheckSettings:
    """Sizes and thresholds of a coordinate check.

    Attributes:
        axis: what grows: width (at model.depth), depth (at model.width), or both in proportion (from model.width and
            model.depth on).
        widths: of --axis width, from small to large.
        depths: of --axis depth, from small to large.
        ratios: of --axis both: factors on model.width and model.depth, from small to large.
        seeds: repetitions of every size, with seeds 1, 2, ...
        control_seeds: those of SP where it stands beside the recipe, at most as many.
        growth_at_init: largest exponent of a feature's norm before the first step; also how far it may lie below what
            sums of random numbers come to.
        feature_band: largest exponent, up or down, of a feature's norm after the last step.
        change_band: the same of the norm of its change since the start.
        workers: processes that train side by side; null: one a core; 0: none but this one.
        out: folder of coordinates.json and coordinates.png; null: runs/coordinates/OPTIMIZER-AXIS-PARAMETRIZATION.
        alone: leave out SP, which is otherwise trained too, for comparison.
    """

    axis: Literal["width", "depth", "both"] = "width"
    widths: list[int] = field(default_factory=lambda: [256, 384, 512, 768])
    depths: list[int] = field(default_factory=lambda: [16, 32, 64])
    ratios: list[float] = field(default_factory=lambda: [1.0, 1.5, 2.0, 3.0])
    seeds: int = 8
    control_seeds: int = 3
    growth_at_init: float = 0.1
    feature_band: float = 0.1
    change_band: float = 0.15
    workers: int | None = None
    out: str | None = None
    alone: bool = False
    table: list[Path] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Refuse settings that no exponent could be fitted with.

        Raises:
            UserError: naming the option, the value and what was expected.
        """
        for option in ("widths", "depths", "ratios"):
            sizes = getattr(self, option)
            if len(sizes) < 3 or sizes != sorted(set(sizes)) or sizes[0] <= 0:
                given = ",".join(f"{size:g}" for size in sizes)
                raise UserError(f"--{option} is {given}; expected at least three numbers above 0, from small to large")
        for option in ("seeds",) if self.alone else ("seeds", "control_seeds"):
            if getattr(self, option) < 2:
                raise UserError(f"--{option} is {getattr(self, option)}; expected at least 2, or there is no interval")
        for option in ("growth_at_init", "feature_band", "change_band"):
            if not getattr(self, option) > 0:
                raise UserError(f"--{option} is {getattr(self, option)}; expected an exponent above 0, such as 0.1")
        if self.workers is not None and self.workers < 0:
            raise UserError(f"--workers is {self.workers}; expected 0 (train in this process) or more")

    def shapes(self, width: int, depth: int) -> list[tuple[int, int]]:
        """(width, depth) of every model, from small to large.

        Args:
            width: of the configured model: what --axis depth keeps, and --axis both begins with.
            depth: likewise.

        Raises:
            UserError: a ratio of --axis both does not make a whole number of them.
        """
        if self.axis == "width":
            return [(size, depth) for size in self.widths]
        if self.axis == "depth":
            return [(width, size) for size in self.depths]
        for ratio in self.ratios:
            if width * ratio % 1 or depth * ratio % 1:
                raise UserError(
                    f"--ratios: {ratio:g} times width {width} and depth {depth} are not whole numbers; choose other "
                    f"ratios, or another model.width and model.depth to begin with"
                )
        return [(int(width * ratio), int(depth * ratio)) for ratio in self.ratios]

    @property
    def sizes(self) -> list[float]:
        """What exponents are taken in: widths, depths, or ratios."""
        if self.axis == "both":
            return list(self.ratios)
        return list(self.widths if self.axis == "width" else self.depths)
