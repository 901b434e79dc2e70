"""What can be set of the update rules besides the values that the recipe derives. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mup_lightning.errors import UserError


def _check_decay(key: str, value: float) -> None:
    if not 0.0 <= value < 1.0:
        raise UserError(f"{key} is {value}; expected a decay rate, 0 <= value < 1")


@dataclass
class AdamWOptions:
    """AdamW.

    Attributes:
        beta1: decay of the gradient's moving average.
        beta2: decay of the squared gradient's moving average.
    """

    beta1: float = 0.9
    beta2: float = 0.95

    def __post_init__(self) -> None:
        """Raise UserError for decay rates outside [0, 1)."""
        _check_decay("rules.adamw.beta1", self.beta1)
        _check_decay("rules.adamw.beta2", self.beta2)


@dataclass
class MuonOptions:
    """Muon and Muon-Kimi.

    Attributes:
        momentum: decay of the gradient's accumulation.
        nesterov: look one step ahead along the momentum.
        steps: Newton-Schulz iterations.
        coefficients: a, b, c of one iteration X <- aX + b(XXᵀ)X + c(XXᵀ)²X.
        dtype: of the iteration; auto is bfloat16 on GPU and float32 on CPU, where bfloat16 is slow.
    """

    momentum: float = 0.95
    nesterov: bool = True
    steps: int = 5
    coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315)
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"

    def __post_init__(self) -> None:
        """Raise UserError for values that define no iteration."""
        self.coefficients = (*self.coefficients,)  # a list, where they come from YAML
        _check_decay("rules.muon.momentum", self.momentum)
        if self.steps < 1:
            raise UserError(f"rules.muon.steps is {self.steps}; expected at least 1 Newton-Schulz iteration")


@dataclass
class RuleOptions:
    """Options of all update rules; a rule reads its own.

    Attributes:
        adamw: AdamW's.
        muon: Muon's and Muon-Kimi's.
    """

    adamw: AdamWOptions = field(default_factory=AdamWOptions)
    muon: MuonOptions = field(default_factory=MuonOptions)


@dataclass
class ScheduleConfig:
    """Learning rate over time: linear warm-up, then a cosine to a floor. Every group keeps its ratio to the base.

    Attributes:
        warmup_steps: optimizer steps of the linear warm-up from 0; null: a tenth of the run.
        min_lr: the floor that the cosine ends at, in units of recipe.lr.
    """

    warmup_steps: int | None = None
    min_lr: float = 3e-5

    def __post_init__(self) -> None:
        """Raise UserError for negative values."""
        for key in ("warmup_steps", "min_lr"):
            if (getattr(self, key) or 0) < 0:
                raise UserError(f"schedule.{key} is {getattr(self, key)}; expected 0 or more")
