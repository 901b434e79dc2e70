"""What a probe measures on, and how long. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from mup_lightning.errors import UserError

WINDOWS = {"first": "step 1", "later": "later steps"}
"""When ‖A‖_R is taken -> in words: at the first step, where momentum means nothing, and over the later ones."""


@dataclass(frozen=True)
class ProbeSettings:
    """Sizes, task and tolerance of a probe.

    Attributes:
        widths: n of the networks on the width line, all of depth `depths[0]`.
        depths: L of the networks on the depth line, all of width `widths[0]`. The first of both is the base.
        branch_depth: k, the matrices in a residual branch: 1, or 2 and more.
        seeds: repetitions, each with its own task, data and weights; the same ones at every size.
        steps: of each network.
        later_from: the first of the later steps, counted from 1.
        batch: samples in a step.
        inputs: length of a sample, n_in of the input matrix.
        classes: n_out of the output matrix.
        step_size: ‖ΔW‖_R of every step over the weight's own size at the base.
        tolerance: how far a measured exponent may be from the declared one.
    """

    widths: tuple[int, ...] = (64, 128, 256, 512)
    depths: tuple[int, ...] = (2, 4, 8, 16, 32)
    branch_depth: int = 2
    seeds: int = 8
    steps: int = 10
    later_from: int = 5
    batch: int = 32
    inputs: int = 16
    classes: int = 8
    step_size: float = 0.05
    tolerance: float = 0.15

    def __post_init__(self) -> None:
        """Refuse settings that no exponent could be fitted with.

        Raises:
            UserError: naming the option, the value and what was expected.
        """
        for option, sizes in (("--widths", self.widths), ("--depths", self.depths)):
            if len(sizes) < 3 or list(sizes) != sorted(set(sizes)) or sizes[0] < 1:
                given = ",".join(map(str, sizes))
                raise UserError(f"{option} is {given}; expected at least three whole numbers from small to large")
        if self.seeds < 2:
            raise UserError(f"--seeds is {self.seeds}; expected at least 2, or there is no interval")
        if self.steps < self.later_from:
            raise UserError(f"--steps is {self.steps}; expected at least {self.later_from}, the first of later steps")
        if self.branch_depth < 1:
            raise UserError(f"--branch-depth is {self.branch_depth}; expected at least 1 matrix in a branch")
        if not self.tolerance > 0:
            raise UserError(f"--tolerance is {self.tolerance}; expected a number above 0, such as 0.15")

    @property
    def base(self) -> tuple[int, int]:
        """(width, depth) that the condition's ratios are taken to."""
        return self.widths[0], self.depths[0]

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """(width, depth) of every network: the width line, then the rest of the depth line."""
        width, depth = self.base
        return [(n, depth) for n in self.widths] + [(width, L) for L in self.depths[1:]]


QUICK = ProbeSettings(widths=(32, 64, 128), depths=(2, 4, 8), seeds=4, steps=6)
"""For a look in seconds: too small to trust."""
