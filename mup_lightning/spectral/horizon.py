"""How values follow the batch B (tokens of a step) and the horizon T (tokens of the run): derived, or by a fitted law.

**The assumption.** Gradients are mostly noise, as they are where the batch is far below the critical one; noise of
different tokens is independent, so that an entry of the batch's gradient goes as B^-1/2. To its weights, a run of
S = T/B steps is then a diffusion (the SDE of Malladi et al. 2022, arXiv 2205.10287). Keep its size at every B and T:

    S · (η‖A‖)² = const        η ∝ (B/T)^1/2 / ‖A‖

since steps of noise add up as their squares. ‖A‖ of a rule whose steps ignore the gradient's size is constant, hence
η ∝ (B/T)^1/2 for Adam's relatives and orthogonalised steps. SGD's goes as B^-1/2, hence η ∝ B·T^-1/2. The rest follows:

- Weight decay, over 1/(ηλ) steps, and averages are to forget over the same share of the run: ηλ ∝ B/T and β -> β^(B/T).
- Not so averages that set the size of the steps (SGD's, Lion's, Muon's, SSO's, Sophia's momentum): they stay, in steps.
- What is added to gradients or limits them goes as they do: ε as B^-1/2 (Shampoo's, a square, as B^-1), the unit of
  clipping too. Sophia's ρh is compared with the momentum, but h does not shrink with the batch: so ρ ∝ B^-1/2.

docs/method/horizon.md says why, what others have instead, and that nobody has confirmed it for matrix optimizers: their
published laws are fits, and a fit is what to use there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated

from mup_lightning.errors import UserError, located
from mup_lightning.files import read_json
from mup_lightning.spectral.scale import HALF, ONE, B, Ratios, Scale, T
from mup_lightning.typed import Bound, PositiveFloat, Typed, build


@dataclass(frozen=True)
class Horizon:
    """What batch and horizon add to the condition, all over the base's.

    Attributes:
        noise: size of the gradient's entries.
        update: required size of a step.
        removed: ηλ, the share of a weight that a step removes.
        power: that decays of averages are raised to: one over the steps in which they forget.
    """

    noise: Scale = ONE
    update: Scale = ONE
    removed: Scale = ONE
    power: Scale = ONE


NONE = Horizon()

SDE = Horizon(noise=ONE / B**HALF, update=(B / T) ** HALF, removed=B / T, power=B / T)

FITTED = "fitted:"

TimeRule = Annotated[
    str,
    Bound("none, sde, or fitted:FILE", lambda rule: rule in ("none", "sde") or (rule[:7] == FITTED and rule != FITTED)),
]

SDE_LOSES = "in our own runs the time rule sde lost to none (docs/results/horizon.md); a fitted law is what to use"

AXES = ("width", "depth", "tokens", "batch")
"""What a law may be over: n, L, T (tokens of the run) and B (tokens of an optimizer step)."""


@dataclass
class Estimate:
    """An exponent with its interval, both ends finite."""

    estimate: Annotated[float, Bound("an exponent from -10 to 10", lambda power: abs(power) <= 10)]
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
            if set(found := getattr(self, name)) != set(AXES):
                raise UserError(f"law.{name} has {', '.join(found) or 'nothing'}; expected {', '.join(AXES)}")


def read_law(rule: str) -> Law | None:
    """The law in the JSON file that a time_rule names; None where it names none.

    Raises UserError where it cannot be read, is damaged, or holds something else.
    """
    if not rule.startswith(FITTED):
        return None
    file = Path(rule.removeprefix(FITTED)).expanduser()
    content = read_json(file, "a law of the best learning rate, as mup-lightning tune writes it")
    with located(file):
        return build(Law, content, "law.")


def horizon_of(rule: str, law: Law | None) -> Horizon:
    """What a time_rule adds. Of a law: rates, and decay over the same share of the run; all else is as in its runs."""
    if law is None:
        return SDE if rule == "sde" else NONE
    powers = [Fraction(found.estimate if (found := law.exponents[axis]) else 0) for axis in ("batch", "tokens")]
    return Horizon(update=B ** powers[0] * T ** powers[1], removed=B / T)


def refuse_unfitted(law: Law, ratios: Ratios) -> None:
    """Raise UserError where a run differs from the base along an axis that the law's runs did not differ in."""
    for axis, times in (("batch", ratios.batch), ("tokens", ratios.tokens)):
        if law.exponents[axis] is None and times != 1:
            raise UserError(
                f"the law of recipe.time_rule has no exponent over {axis}, but this run's are {times:g} times those of "
                f"recipe.base_{axis}; fit one to runs that differ in {axis}, or keep to the base"
            )


def beyond(law: Law, sizes: Mapping[str, float]) -> str:
    """How many times a run, of these sizes by axis, is outside the runs of a law, in words; empty where it is not."""
    outside = []
    for axis, (low, high) in law.ranges.items():
        if (times := max(sizes[axis] / high, low / sizes[axis])) > 1:
            outside.append(f"{axis} {sizes[axis]:g} is {times:.3g} times beyond {low:g} to {high:g}")
    return f"outside the runs of the law ({law.source}): {', '.join(outside)}" if outside else ""
