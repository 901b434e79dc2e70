"""Coordinate checks: do features keep their size as the model grows? Here the options: sizes, seeds, thresholds."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from mup_lightning.errors import UserError
from mup_lightning.spectral.base import Parametrization
from mup_lightning.studies import GROWING
from mup_lightning.studies.scaling import Shape
from mup_lightning.typed import AtLeastTwo, NonNegativeInt, PositiveFloat, PositiveInt, Typed

SYMBOLS = {"width": "n", "depth": "L", "both": "r", "experts": "E"}
"""Axis -> what exponents are powers of; r is the factor by which both width and depth have grown."""


@dataclass
class CheckSettings(Typed, prefix="--"):
    """Trains models of several sizes and seeds for a few steps, at a constant learning rate without warm-up, fits how
    the RMS norm of every feature, and of its change, grows with size, and ends with a verdict.

    Exit status: 0 PASS, 3 FAIL, 4 UNCLEAR (too noisy, or the base learning rate diverges); with --all or --table 0.

    Attributes:
        axis: what grows: width (at model.depth), depth (at model.width), or both in proportion (from model.width and
            model.depth on), or experts (at both; recipe.base_experts must be set).
        widths: sizes of --axis width, from small to large.
        depths: sizes of --axis depth, from small to large.
        ratios: sizes of --axis both: factors on model.width and model.depth, from small to large.
        experts: sizes of --axis experts, from small to large.
        seeds: repetitions of every size, with the seeds from 1 on.
        controls: parametrizations that are trained too, for comparison: sp, gpt2, sp_embedding.
        control_seeds: repetitions of these; at most as many.
        growth_at_init: largest exponent of a feature's norm before the first step; also how far it may fall below what
            a sum of random terms has.
        feature_band: largest exponent, up or down, of a feature's norm after the last step.
        change_band: the same for the norm of its change since the start.
        workers: processes that train at the same time; null: one per core; 0: train in this process.
        out: folder of coordinates.json and coordinates.png; null: runs/coordinates/OPTIMIZER-AXIS-PARAMETRIZATION; with
            --all the folder above these.
        alone: leave out the controls.
        all: a list of checks, such as recipes/experiment/coordinates.yaml: each is run unless it is finished already,
            and all are printed as one table.
        table: folders of finished checks, which are printed as one table; nothing is trained.
    """

    axis: Literal["width", "depth", "both", "experts"] = "width"
    widths: Annotated[list[PositiveInt], GROWING] = field(default_factory=lambda: [256, 384, 512, 768])
    depths: Annotated[list[PositiveInt], GROWING] = field(default_factory=lambda: [16, 32, 64])
    ratios: Annotated[list[PositiveFloat], GROWING] = field(default_factory=lambda: [1.0, 1.5, 2.0, 3.0])
    experts: Annotated[list[PositiveInt], GROWING] = field(default_factory=lambda: [4, 8, 16, 32])
    seeds: AtLeastTwo = 8
    controls: list[Parametrization] = field(default_factory=lambda: ["sp"])
    control_seeds: AtLeastTwo = 3
    growth_at_init: PositiveFloat = 0.1
    feature_band: PositiveFloat = 0.1
    change_band: PositiveFloat = 0.15
    workers: NonNegativeInt | None = None
    out: str | None = None
    alone: bool = False
    all: Path | None = None
    table: list[Path] = field(default_factory=list)

    @property
    def of_controls(self) -> int:
        """Repetitions of the controls."""
        return min(self.seeds, self.control_seeds)

    def sizes(self, width: int, depth: int) -> dict[Shape, float]:
        """(width, depth) of every model -> its width, depth or ratio, from small to large.

        With --axis experts (width, depth, experts) -> experts. The arguments are those of the configured model, which
        --axis depth, width or experts keeps and --axis both starts from.
        Raises UserError where a ratio does not give a whole width and depth.
        """
        if self.axis == "width":
            return {(size, depth): size for size in self.widths}
        if self.axis == "depth":
            return {(width, size): size for size in self.depths}
        if self.axis == "experts":
            return {(width, depth, size): size for size in self.experts}
        for ratio in self.ratios:
            if width * ratio % 1 or depth * ratio % 1:
                odd = f"--ratios: {ratio:g} times width {width} and depth {depth} are not whole numbers"
                raise UserError(f"{odd}; choose others, or start from another model.width and model.depth")
        return {(int(width * ratio), int(depth * ratio)): ratio for ratio in self.ratios}
