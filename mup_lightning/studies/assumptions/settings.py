"""What the assumptions are checked on, and what counts as holding. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from mup_lightning.errors import UserError
from mup_lightning.spectral.families import FAMILIES

NETWORKS = ("mlp", "gpt2")

TIMES = ("start", "middle", "end")
"""Of training: after 0, T/2 and T steps."""

BASE_LR: dict[str, dict[str, float]] = {
    "mlp": {
        "muon_kimi": 2**-8,
        "muon": 2**-6,
        "sso": 2**-7,
        "shampoo": 2**-8,
        "adamw": 2**-8,
        "lion": 2**-9,
        "sgd": 2**-5,
    },
    "gpt2": {
        "muon_kimi": 2**-7,
        "muon": 2**-6,
        "sso": 2**-7,
        "shampoo": 2**-9,
        "adamw": 2**-11,
        "lion": 2**-13,
        "sgd": 2**-5,
    },
}
"""Base learning rates: the best powers of two after 120 steps at width 64 and depth 4, one seed."""

BASE: dict[str, tuple[int, int]] = {"mlp": (64, 4), "gpt2": (256, 4)}
"""The (width, depth) that the base values are for."""

BASE_EPS = {"shampoo": 1e-8}
"""Base ε where it is not the recipe's default, as recipes/optimizer/ has it."""

REFUSED = {
    "soap": "its first step changes nothing",
    "sophia": "its first step needs a Hessian for every sample",
}
"""Optimizers for which the update that one sample alone would give is not defined -> why."""


@dataclass(frozen=True)
class AssumptionSettings:
    """Networks, training and thresholds of the checks.

    Attributes:
        networks: mlp, gpt2, or both.
        depths: L, at least 3 from small to large.
        optimizers: keys of `BASE_LR`.
        width: n, of all networks.
        seeds: repetitions, each with its own weights and data; the same ones at every depth.
        steps: T; measurements are taken after 0, T/2 and T of them.
        warmup: steps over which the learning rate rises to its constant value, as in training; null: a tenth of T.
        batch: samples in a step of the MLP.
        sequences: in a step of the GPT-2, where a sequence is a sample.
        context: tokens in a sequence.
        inputs: length of the MLP's samples.
        classes: that the MLP tells apart.
        data: folder of a corpus prepared as bytes, for the GPT-2.
        least: ratios of which the theory says that nothing cancels must nowhere be smaller.
        tolerance: largest exponent of depth at which a ratio still counts as flat.
    """

    networks: tuple[str, ...] = NETWORKS
    depths: tuple[int, ...] = (4, 8, 16, 32, 64)
    optimizers: tuple[str, ...] = ("muon_kimi", "adamw")
    width: int = 64
    seeds: int = 3
    steps: int = 120
    warmup: int | None = None
    batch: int = 32
    sequences: int = 8
    context: int = 64
    inputs: int = 16
    classes: int = 8
    data: str = "data/prepared/austen-bytes"
    least: float = 0.8
    tolerance: float = 0.1

    def __post_init__(self) -> None:
        """Refuse settings that nothing could be concluded from.

        Raises:
            UserError: naming the option, the value and what was expected.
        """
        if len(self.depths) < 3 or list(self.depths) != sorted(set(self.depths)) or self.depths[0] < 2:
            given = ",".join(map(str, self.depths))
            raise UserError(f"--depths is {given}; expected at least three whole numbers of 2 or more, small to large")
        if not self.optimizers:
            raise UserError(f"--optimizer is empty; expected one or more of {', '.join(BASE_LR['mlp'])}")
        for name in self.optimizers:
            if name in REFUSED:
                raise UserError(
                    f"--optimizer {name} cannot be checked: {REFUSED[name]}, so the update that one sample alone would "
                    f"give is not defined; choose from {', '.join(BASE_LR['mlp'])}"
                )
            if name not in FAMILIES:
                raise UserError(f"--optimizer is {name!r}; expected one or more of {', '.join(BASE_LR['mlp'])}")
        for option, value, least in (
            ("--seeds", self.seeds, 2),
            ("--steps", self.steps, 2),
            ("--width", self.width, 8),
        ):
            if value < least:
                raise UserError(f"{option} is {value}; expected a whole number of at least {least}")

        if self.warmup is not None and not 0 <= self.warmup < self.steps:
            raise UserError(f"--warmup is {self.warmup}; expected 0 or more, and fewer than the {self.steps} --steps")

        if not 0 < self.least <= 1:
            raise UserError(f"--least is {self.least}; expected a ratio above 0 and up to 1, such as 0.8")
        if not self.tolerance > 0:
            raise UserError(f"--tolerance is {self.tolerance}; expected a number above 0, such as 0.1")

    @property
    def measured_at(self) -> dict[str, int]:
        """Time -> steps that are done when the measurement is taken."""
        return {"start": 0, "middle": self.steps // 2, "end": self.steps}
