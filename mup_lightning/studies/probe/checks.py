"""Looks at an unknown optimizer before it is probed: on its first step that moves a matrix, on the smallest network."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from mup_lightning.errors import UserError
from mup_lightning.studies.probe.mover import Mover

DECAY = 0.1
"""Weight decay that is tried."""

_SAME = 1e-3
"""Relative difference up to which two steps count as one."""


@dataclass(frozen=True)
class LearningRate:
    """How a step depends on the learning rate.

    Attributes:
        default: the rate that was tried, the class's own.
        first_moving_step: see `Move`.
        proportional: twice the rate, and a very large one, give the same direction at that multiple.
        difference: relative, between the halved step at twice the rate and the step at the rate.
        vectors: whether the steps of vectors are proportional too.
        meaning: in words.
    """

    default: float
    first_moving_step: int
    proportional: bool
    difference: float
    vectors: bool
    meaning: str

    def as_plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def check_lr(seen: Mover, lr: float, large: float) -> LearningRate:
    """Two runs at a rate and at twice the rate, and one at a very large rate, from the same start."""
    once, twice = seen.first(lr), seen.first(2 * lr)
    difference, vectors = _differences(once.change, twice.change, 2.0)
    proportional = difference <= _SAME
    if proportional:
        try:
            proportional = _differences(once.change, seen.first(large).change, large / lr)[0] <= _SAME
        except UserError:
            proportional = False
    if difference > _SAME:
        meaning = (
            "steps are not proportional to the learning rate: the proposed factors on it are only a first guess, and "
            "exponents hold for this rate"
        )
    elif not proportional:
        meaning = "steps are proportional to the learning rate, but not up to very large ones; probed at this rate"
    else:
        meaning = "steps are proportional to the learning rate"
    if vectors > _SAME >= difference:
        meaning += "; those of vectors are not (does it have another rate for them?)"
    return LearningRate(lr, once.number, proportional, difference, vectors <= _SAME, meaning)


@dataclass(frozen=True)
class Decay:
    """How weight decay enters a step.

    Attributes:
        kind: "decoupled", "fixed", "coupled", "ignored" or "scaled".
        factor: what the step subtracts over lr · weight decay · W; None where it is no multiple of W.
        meaning: for the proposal, in words.
    """

    kind: str
    factor: float | None
    meaning: str

    def as_plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def check_decay(seen: Mover, lr: float) -> Decay:
    """The same step with and without weight decay: is the difference -lr · decay · W?

    At a thousandth of the rate, where float64 allows it: many classes take the decay off the stepped weight, W + ΔW.
    """
    lr, same = (1e-3 * lr, 0.01) if seen.precise else (lr, 0.05)
    without, decayed = seen.first(lr), seen.first(lr, DECAY)
    names = [name for name, weight in without.before.items() if weight.ndim > 1]
    if decayed.number != without.number:
        # It moved by decay alone before it moved by gradients.
        change = {name: decayed.change[name] for name in names}
    else:
        change = {name: decayed.change[name] - without.change[name] for name in names}
    W = torch.cat([decayed.before[name].flatten() for name in names])
    D = torch.cat([change[name].flatten() for name in names])
    expected = -lr * DECAY * W
    if D.norm() <= 1e-6 * expected.norm():
        return Decay("ignored", 0.0, "weight decay changes nothing in the first step: the proposal's may not apply")
    factor = float(D @ expected / (expected @ expected))
    if float((D - factor * expected).norm() / D.norm()) > same:
        return Decay(
            "coupled",
            None,
            "weight decay is not taken off the weight but goes through the optimizer's own scaling: the proposed "
            "weight_decay exponents do not apply to it; use its decoupled option, or 0",
        )
    if abs(factor - 1) <= same:
        return Decay("decoupled", factor, "one step takes off lr x weight_decay of a weight: the proposal applies")
    if abs(factor * lr - 1) <= same:
        return Decay(
            "fixed",
            factor,
            "one step takes off weight_decay of a weight, whatever lr: multiply the proposed weight_decay factors by "
            "those of lr",
        )
    return Decay(
        "scaled",
        factor,
        f"one step takes off {factor:.3g} x lr x weight_decay of a weight at the base size: check how that factor "
        f"depends on size before using the proposal",
    )


def check_state(seen: Mover, lr: float) -> None:
    """Refuse an optimizer that keeps its own copy of the weights: the probe sets them, and it would not notice.

    Raises:
        UserError: naming the state.
    """
    move = seen.first(lr)
    for name, tensors in move.state.items():
        weight = move.before[name]
        if weight.ndim < 2:
            continue
        for key, tensor in tensors.items():
            if tensor.shape != weight.shape:
                continue
            for known in (weight, weight + move.change[name]):
                if float((tensor.to(weight) - known).norm()) <= 1e-5 * float(known.norm()):
                    raise UserError(
                        f"{seen.name} keeps its own copy of the weights (its state {key!r}), as lookahead, averaging "
                        f"and schedule-free optimizers do. The probe sets the weights after every step, which such an "
                        f"optimizer does not see: it cannot be probed"
                    )


def _differences(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], ratio: float) -> tuple[float, float]:
    """The largest relative difference between first and second/ratio: (of matrices, of vectors)."""
    worst = [0.0, 0.0]
    for name, step in first.items():
        size = float(step.norm())
        other = float((second[name] / ratio - step).norm())
        relative = other / size if size > 0 else (0.0 if other == 0 else float("inf"))
        place = 0 if step.ndim > 1 else 1
        worst[place] = max(worst[place], relative)
    return worst[0], worst[1]
