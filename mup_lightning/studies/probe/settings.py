"""Options of `mup-lightning probe`. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from mup_lightning.errors import UserError
from mup_lightning.spectral.families import FAMILIES

LATER_FROM = 5
"""The first of the later steps, counted from 1."""

WINDOWS = {"first": "step 1", "later": "later steps"}
"""When ‖A‖_R is taken -> in words: at the first step, where momentum has no effect yet, and over the later ones."""

AXES = {"width": "n", "depth": "L"}
"""What grows -> its symbol."""

DEFAULTS: dict[str, Any] = {"widths": [64, 128, 256, 512], "depths": [2, 4, 8, 16, 32], "seeds": 8, "steps": 10}
QUICK: dict[str, Any] = {"widths": [32, 64, 128], "depths": [2, 4, 8], "seeds": 4, "steps": 6}
MATRIX_SEEDS = 4
"""Seeds of our whole-matrix families, whose exponents vary less and whose steps cost more."""


@dataclass
class ProbeSettings:
    """What is probed, on which networks, and how strictly it is judged.

    Attributes:
        optimizer: one of ours, or package.module:Class of any torch optimizer, such as pytorch_optimizer:Adan.
        all: probe all of ours, and write one Markdown table.
        arguments: options of the optimizer as JSON, such as '{"beta1": 0.9}'.
        quick: tiny networks; a look in seconds, too small to trust.
        widths: sizes of the networks on the width line, all of the smallest depth; empty: 64,128,256,512.
        depths: branches of the networks on the depth line, all of the smallest width; empty: 2,4,8,16,32.
        branch_depth: k, the matrices in a residual branch: 1, or 2 and more.
        seeds: repetitions, each with its own task, data and weights; 0: 8, or 4 for our whole-matrix families.
        steps: steps of each network; 0: 10.
        batch: samples in a step.
        tolerance: how far an exponent may be from the declared one.
        out: folder of probe.json and probe.png (of table.md with --all); null: runs/probe/NAME.
        json: print JSON in place of the table (probe.json also holds every measurement).
    """

    optimizer: str | None = None
    all: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)
    quick: bool = False
    widths: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    branch_depth: int = 2
    seeds: int = 0
    steps: int = 0
    batch: int = 32
    tolerance: float = 0.15
    out: str | None = None
    json: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be probed. Sizes that were left out get their defaults, unless `all` leaves them open.

        Raises:
            UserError: naming the option, the value and what was expected.
        """
        if (self.optimizer is None) != self.all:
            raise UserError("expected either --optimizer NAME or --all")
        if self.all and self.arguments:
            raise UserError("--arguments goes with --optimizer: every optimizer has its own")
        if self.optimizer is not None:
            if self.optimizer not in FAMILIES and ":" not in self.optimizer:
                known = ", ".join(FAMILIES)
                raise UserError(
                    f"--optimizer is {self.optimizer!r}; expected {known}, or package.module:Class of a torch optimizer"
                )
            defaults = dict(QUICK if self.quick else DEFAULTS)
            if self.optimizer in FAMILIES and FAMILIES[self.optimizer].whole_matrix:
                defaults["seeds"] = MATRIX_SEEDS
            for key, value in defaults.items():
                setattr(self, key, getattr(self, key) or value)
        for key in ("widths", "depths"):
            sizes = getattr(self, key)
            if sizes and (len(sizes) < 3 or sizes != sorted(set(sizes)) or sizes[0] < 1):
                given = ",".join(map(str, sizes))
                raise UserError(f"--{key} is {given}; expected at least three whole numbers above 0, small to large")
        least = {"seeds": 2, "steps": LATER_FROM, "branch_depth": 1, "batch": 1, "tolerance": 1e-6}
        for key, value in least.items():
            given = getattr(self, key)
            if not (given >= value or (self.all and given == 0 and key in DEFAULTS)):
                raise UserError(f"--{key.replace('_', '-')} is {given}; expected at least {value:g}")

    def of(self, optimizer: str) -> ProbeSettings:
        """The settings of one optimizer of `all`."""
        return replace(self, optimizer=optimizer, all=False)

    @property
    def base(self) -> tuple[int, int]:
        """(width, depth) of the smallest network, to which the condition's ratios are taken."""
        return self.widths[0], self.depths[0]

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """(width, depth) of every network: the width line, then the rest of the depth line."""
        width, depth = self.base
        return [(n, depth) for n in self.widths] + [(width, L) for L in self.depths[1:]]

    def line(self, axis: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The sizes along an axis, and the (width, depth) of the networks that have them."""
        width, depth = self.base
        return (
            (self.widths, [(n, depth) for n in self.widths])
            if axis == "width"
            else (self.depths, [(width, L) for L in self.depths])
        )
