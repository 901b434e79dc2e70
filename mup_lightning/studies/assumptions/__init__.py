"""What the spectral condition assumes, measured over depth; here the options: networks, training, thresholds."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from mup_lightning.errors import UserError
from mup_lightning.studies import GROWING
from mup_lightning.typed import AtLeastTwo, Bound, NonNegativeInt, OpenUnitInterval, PositiveFloat, PositiveInt, Typed

TIMES = ("start", "middle", "end")  # times of measurement: after 0, T/2 and T steps

_Names = Annotated[list[str], Bound("one or more optimizers", lambda names: len(set(names)) == len(names) > 0)]


@dataclass
class AssumptionSettings(Typed, prefix="--"):
    """Trains small networks of several depths, and measures whether a step cancels its weight or its features, whether
    nonlinearities keep the size of features, and whether the updates of single samples add up.

    Exit status: 0 PASS, 3 FAIL, 4 UNCLEAR.

    Attributes:
        network: a residual MLP (mlp), our GPT-2 (gpt2), or both.
        depths: L, from small to large.
        optimizer: names of optimizers; not soap and sophia, for which the update of one sample alone is not defined.
        rates: file of base learning rates, by network and optimizer; others have that of recipes/optimizer/NAME.yaml.
        width: n, of all networks.
        seeds: repetitions, each with its own weights and data, the same ones at every depth.
        steps: T; measured after 0, T/2 and T steps.
        warmup: steps over which the learning rate rises to its constant value; null: a tenth of T.
        batch: samples in a step of the MLP.
        sequences: samples in a step of the GPT-2, where a sequence is a sample.
        context: tokens in a sequence.
        data: corpus prepared as bytes, for the GPT-2.
        least: smallest ratio that counts as near 1.
        tolerance: largest exponent of depth that counts as flat.
        workers: processes; null: one per core; 0: in this process.
        out: folder of assumptions.json, table.md and the figures.
        json: print JSON instead of text.
    """

    network: Literal["mlp", "gpt2", "both"] = "both"
    depths: Annotated[list[AtLeastTwo], GROWING] = field(default_factory=lambda: [4, 8, 16, 32, 64])
    optimizer: _Names = field(default_factory=lambda: ["muon_kimi", "adamw"])
    rates: str = "recipes/experiment/assumptions.yaml"
    width: PositiveInt = 64
    seeds: AtLeastTwo = 3
    steps: AtLeastTwo = 120
    warmup: NonNegativeInt | None = None
    batch: PositiveInt = 32
    sequences: PositiveInt = 8
    context: PositiveInt = 64
    data: str = "data/prepared/austen-bytes"
    least: OpenUnitInterval = 0.8
    tolerance: PositiveFloat = 0.1
    workers: NonNegativeInt | None = None
    out: str = "runs/assumptions"
    json: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup is not None and self.warmup >= self.steps:
            raise UserError(f"--warmup is {self.warmup}; expected fewer steps than the {self.steps} of --steps")

    @property
    def networks(self) -> list[str]:
        """The networks to be checked."""
        return ["mlp", "gpt2"] if self.network == "both" else [self.network]


def measured_at(steps: int) -> dict[str, int]:
    """Time -> steps done when the measurement is taken, of T = `steps`."""
    return dict(zip(TIMES, (0, steps // 2, steps), strict=True))
