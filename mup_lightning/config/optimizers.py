"""What can be set of the update rules besides the values that the recipe derives. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mup_lightning.errors import UserError


def _check_decay(key: str, value: float) -> None:
    if not 0.0 <= value < 1.0:
        raise UserError(f"{key} is {value}; expected a decay rate, 0 <= value < 1")


def _check_positive(key: str, value: float) -> None:
    if not value > 0:
        raise UserError(f"{key} is {value}; expected a number above 0")


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
class SGDOptions:
    """SGD.

    Attributes:
        momentum: decay of the gradient's accumulation; 0: none.
        nesterov: look one step ahead along the momentum.
    """

    momentum: float = 0.9
    nesterov: bool = False

    def __post_init__(self) -> None:
        """Raise UserError for a momentum that is no decay rate, or for Nesterov without momentum."""
        _check_decay("rules.sgd.momentum", self.momentum)
        if self.nesterov and not self.momentum:
            raise UserError("rules.sgd.nesterov is true, but rules.sgd.momentum is 0; expected a momentum above 0")


@dataclass
class LionOptions:
    """Lion.

    Attributes:
        beta1: share of the momentum, against the gradient, in what the sign is taken of.
        beta2: decay of the momentum.
    """

    beta1: float = 0.9
    beta2: float = 0.99

    def __post_init__(self) -> None:
        """Raise UserError for decay rates outside [0, 1)."""
        _check_decay("rules.lion.beta1", self.beta1)
        _check_decay("rules.lion.beta2", self.beta2)


@dataclass
class SophiaOptions:
    """Sophia.

    Attributes:
        beta1: decay of the gradient's moving average.
        beta2: decay of the Hessian's moving average, per estimate.
        rho: size of the Hessian in the denominator (the paper's gamma): the larger, the fewer entries are clipped.
        hessian_every: steps from one estimate of the Hessian to the next.
        eps: least denominator.
    """

    beta1: float = 0.965
    beta2: float = 0.99
    rho: float = 0.05
    hessian_every: int = 10
    eps: float = 1e-12

    def __post_init__(self) -> None:
        """Raise UserError for values that define no update."""
        _check_decay("rules.sophia.beta1", self.beta1)
        _check_decay("rules.sophia.beta2", self.beta2)
        _check_positive("rules.sophia.rho", self.rho)
        _check_positive("rules.sophia.hessian_every", self.hessian_every)
        _check_positive("rules.sophia.eps", self.eps)


@dataclass
class ShampooOptions:
    """Shampoo. Its stabiliser is recipe.eps, which the recipe scales.

    Attributes:
        beta1: decay of the gradient's moving average.
        beta2: decay of the preconditioners' moving averages.
        precondition_every: steps from one inverse root to the next.
        max_dimension: sides longer than this are not preconditioned.
    """

    beta1: float = 0.95
    beta2: float = 0.95
    precondition_every: int = 1
    max_dimension: int = 20000

    def __post_init__(self) -> None:
        """Raise UserError for values that define no update."""
        _check_decay("rules.shampoo.beta1", self.beta1)
        _check_decay("rules.shampoo.beta2", self.beta2)
        _check_positive("rules.shampoo.precondition_every", self.precondition_every)
        _check_positive("rules.shampoo.max_dimension", self.max_dimension)


@dataclass
class SOAPOptions:
    """SOAP.

    Attributes:
        beta1: decay of the gradient's moving average.
        beta2: decay of the squared gradient's and the preconditioners' moving averages.
        eps: Adam's, in the eigenbasis.
        precondition_every: steps from one refresh of the eigenbasis to the next.
        max_dimension: sides longer than this keep their own basis.
    """

    beta1: float = 0.95
    beta2: float = 0.95
    eps: float = 1e-8
    precondition_every: int = 10
    max_dimension: int = 10000

    def __post_init__(self) -> None:
        """Raise UserError for values that define no update."""
        _check_decay("rules.soap.beta1", self.beta1)
        _check_decay("rules.soap.beta2", self.beta2)
        _check_positive("rules.soap.eps", self.eps)
        _check_positive("rules.soap.precondition_every", self.precondition_every)
        _check_positive("rules.soap.max_dimension", self.max_dimension)


@dataclass
class SSOOptions:
    """Spectral Sphere Optimizer.

    Attributes:
        momentum: decay of the gradient's moving average.
        radius: the sphere's radius in units of sqrt(n_out / n_in).
        steps: Newton-Schulz iterations of one orthogonalisation.
        tolerance: how far from tangent to the sphere a step may be, |<u v^T, direction>|.
    """

    momentum: float = 0.9
    radius: float = 1.0
    steps: int = 8
    tolerance: float = 2e-4

    def __post_init__(self) -> None:
        """Raise UserError for values that define no update."""
        _check_decay("rules.sso.momentum", self.momentum)
        _check_positive("rules.sso.radius", self.radius)
        _check_positive("rules.sso.steps", self.steps)
        _check_positive("rules.sso.tolerance", self.tolerance)


@dataclass
class RuleOptions:
    """Options of all update rules; a rule reads its own.

    Attributes:
        adamw: AdamW's.
        muon: Muon's and Muon-Kimi's.
        sgd: SGD's.
        lion: Lion's.
        sophia: Sophia's.
        shampoo: Shampoo's.
        soap: SOAP's.
        sso: the Spectral Sphere Optimizer's.
    """

    adamw: AdamWOptions = field(default_factory=AdamWOptions)
    muon: MuonOptions = field(default_factory=MuonOptions)
    sgd: SGDOptions = field(default_factory=SGDOptions)
    lion: LionOptions = field(default_factory=LionOptions)
    sophia: SophiaOptions = field(default_factory=SophiaOptions)
    shampoo: ShampooOptions = field(default_factory=ShampooOptions)
    soap: SOAPOptions = field(default_factory=SOAPOptions)
    sso: SSOOptions = field(default_factory=SSOOptions)
