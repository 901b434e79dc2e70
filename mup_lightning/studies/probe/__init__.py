"""How an optimizer's steps scale with the network, against what its family declares; here the options."""

from dataclasses import dataclass, field
from typing import Annotated, Any

from mup_lightning.errors import UserError
from mup_lightning.spectral.families import FAMILIES
from mup_lightning.studies import GROWING
from mup_lightning.typed import Bound, PositiveFloat, PositiveInt, Typed

INPUTS, CLASSES = 16, 8
"""Fixed sides of the probed networks: D of the input matrix, unless set, and K of the output matrix."""

LATER_FROM = 5  # the first of the later steps, counted from 1

WINDOWS = {"first": "step 1", "later": "later steps"}
"""When ‖A‖_R is taken -> in words: at the first step, where momentum has no effect yet, and over the later ones."""

AXES = {"width": "n", "depth": "L"}  # what grows -> its symbol

QUICK: dict[str, Any] = {"widths": (32, 64, 128), "depths": (2, 4, 8), "steps": 6}
"""What --quick takes in place of the defaults."""

Name = Annotated[
    str,
    Bound(f"{', '.join(FAMILIES)}, or package.module:Class of a torch optimizer", lambda x: x in FAMILIES or ":" in x),
]
Sizes = Annotated[tuple[PositiveInt, ...], GROWING]
Seeds = Annotated[int, Bound("at least 2, or there is no interval", lambda value: value == 0 or value >= 2)]
Steps = Annotated[int, Bound(f"at least {LATER_FROM}", lambda value: value >= LATER_FROM)]


@dataclass
class ProbeSettings(Typed, prefix="--"):
    """What is probed, on which networks, and how strictly it is judged.

    Attributes:
        optimizer: one of ours, or package.module:Class of any torch optimizer, such as pytorch_optimizer:Adan.
        all: probe all of ours, and write one Markdown table.
        arguments: options of the optimizer as JSON, such as '{"beta1": 0.9}'.
        quick: tiny networks; a look in seconds, too small to trust.
        widths: sizes of the networks on the width line, all of the smallest depth.
        depths: branches of the networks on the depth line, all of the smallest width.
        branch_depth: k, the matrices in a residual branch: 1, or 2 and more.
        seeds: repetitions, each with its own task, data and weights; 0: 8, or 4 for --quick and for our whole-matrix
            families, whose exponents vary less and whose steps cost more.
        steps: steps of each network.
        batch: samples in a step.
        inputs: D, the fixed side of the input matrix; wider than the network, as a vocabulary is, it may be the longer.
        tolerance: how far an exponent may be from the declared one.
        out: folder of probe.json and probe.png (of table.md with --all); null: runs/probe/NAME.
        json: print JSON in place of the table (probe.json also holds every measurement).
    """

    optimizer: Name | None = None
    all: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)
    quick: bool = False
    widths: Sizes = (64, 128, 256, 512)
    depths: Sizes = (2, 4, 8, 16, 32)
    branch_depth: PositiveInt = 2
    seeds: Seeds = 0
    steps: Steps = 10
    batch: PositiveInt = 32
    inputs: PositiveInt = INPUTS
    tolerance: PositiveFloat = 0.15
    out: str | None = None
    json: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.optimizer is None) != self.all:
            raise UserError("expected either --optimizer NAME or --all")
        if self.all and self.arguments:
            raise UserError("--arguments goes with --optimizer: every optimizer has its own")
        for key, value in QUICK.items() if self.quick else ():
            if getattr(self, key) == getattr(ProbeSettings, key):
                setattr(self, key, value)
        if self.optimizer is not None:
            family = FAMILIES.get(self.optimizer)
            self.seeds = self.seeds or (4 if self.quick or (family and family.whole_matrix) else 8)

    @property
    def base(self) -> tuple[int, int]:
        """(width, depth) of the smallest network, to which the condition's ratios are taken."""
        return self.widths[0], self.depths[0]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """(width, depth) of every network: the width line, then the rest of the depth line."""
        return list(self.line("width") | self.line("depth"))

    def line(self, axis: str) -> dict[tuple[int, ...], float]:
        """(width, depth) of the networks along an axis -> their width or depth."""
        width, depth = self.base
        return {(n, depth): n for n in self.widths} if axis == "width" else {(width, L): L for L in self.depths}
