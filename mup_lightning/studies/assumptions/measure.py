"""One network: trained by our own optimizer under the recipe, and measured at the start, the middle and the end."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from mup_lightning.config.optimizers import RuleOptions
from mup_lightning.config.schema import ScheduleConfig
from mup_lightning.errors import UserError
from mup_lightning.optim.groups import make_groups
from mup_lightning.optim.optimizer import HybridOptimizer
from mup_lightning.optim.schedule import make_schedule
from mup_lightning.spectral.recipe import derive
from mup_lightning.studies.assumptions.gpt2 import GPT2Subject
from mup_lightning.studies.assumptions.mlp import MLPSubject, base_values
from mup_lightning.studies.assumptions.networks import Subject, recipe_config
from mup_lightning.studies.assumptions.quantities import (
    activation_ratio,
    alignment,
    feature_ratio,
    weight_ratios,
)
from mup_lightning.studies.assumptions.settings import AssumptionSettings
from mup_lightning.studies.assumptions.tape import Matrix, Place, Tape

Found = dict[str, dict[str, list[float]]]
"""Quantity -> matrix -> a value for every block."""


def measure(network: str, optimizer: str, depth: int, seed: int, settings: AssumptionSettings) -> dict[str, Any]:
    """Train one network and measure it.

    After the warm-up the learning rate is constant: at a schedule's end steps are so small that nothing can cancel.

    Args:
        network: mlp or gpt2.
        optimizer: its name.
        depth: L.
        seed: of weights and data.
        settings: see there.

    Returns:
        Plain values: "network", "optimizer", "depth", "seed", "losses" (before each step) and "times": time ->
        quantity -> matrix -> a value for every block. The quantities are the four, "weights", "features",
        "activation" and "alignment", and the sizes of the step relative to what it changes, "weights_step" and
        "features_step". The features are the matrices' outputs, and "stream", the residual stream behind each block.

    Raises:
        UserError: the training is not finite, or the corpus cannot be read.
    """
    subject, stepper, schedule = build(network, optimizer, depth, seed, settings)
    when = {steps: time for time, steps in settings.measured_at.items()}
    times: dict[str, Found] = {}
    losses = []
    data = subject.batches()
    for step in range(settings.steps + 1):
        batch = next(data)
        stepper.zero_grad()
        try:
            if step in when:
                loss, times[when[step]] = measured_step(subject, stepper, batch, depth)
            else:
                loss = subject.loss(batch)
                loss.backward()
                stepper.step()
        except FloatingPointError:
            raise UserError(
                f"{optimizer} diverged in step {step + 1} of a {network} of width {settings.width} and depth {depth} "
                f"(seed {seed}), so its assumptions cannot be checked; leave it out of --optimizer, or give fewer "
                f"--steps or a longer --warmup"
            ) from None
        schedule.step()
        losses.append(loss.item())
    return {
        "network": network,
        "optimizer": optimizer,
        "depth": depth,
        "seed": seed,
        "losses": [_short(loss) for loss in losses],
        "times": times,
    }


def build(
    network: str, optimizer: str, depth: int, seed: int, settings: AssumptionSettings
) -> tuple[Subject, HybridOptimizer, LambdaLR]:
    """A network, its optimizer and its schedule: roles -> recipe -> groups, as in training."""
    config = recipe_config(network, optimizer, **(base_values(settings) if network == "mlp" else {}))
    recipe = derive(config, settings.width, depth)
    kind = MLPSubject if network == "mlp" else GPT2Subject
    subject: Subject = kind(settings, recipe, depth, seed)
    named = dict(subject.model.named_parameters())
    stepper = HybridOptimizer(make_groups(named, subject.infos, recipe, RuleOptions()))
    warmup = settings.steps // 10 if settings.warmup is None else settings.warmup
    constant = ScheduleConfig(warmup_steps=warmup, min_lr=config.lr)
    return subject, stepper, make_schedule(stepper, constant, config.lr, settings.steps + 1)


def measured_step(subject: Subject, stepper: HybridOptimizer, batch: Any, depth: int) -> tuple[torch.Tensor, Found]:
    """One step of training, and what it does. Returns the loss before it, and the quantities.

    Raises:
        FloatingPointError: gradients or the features after the step are not finite.
    """
    before, after = Tape(), Tape()
    loss = subject.loss(batch, before)
    loss.backward()
    places = {matrix: matrix.places(depth) for matrix in subject.matrices}
    weights = _weights(subject, places)
    aligned = {
        place: _alignment(subject, stepper, matrix, place, weights[place], before)
        for matrix in places
        for place in places[matrix]
    }
    stepper.step()
    with torch.no_grad():
        subject.loss(batch, after)

    stepped = _weights(subject, places)
    found: Found = {name: {} for name in ("weights", "weights_step", "features", "features_step")}
    found |= {"activation": {}, "alignment": {}}
    for matrix, mine in places.items():
        name = matrix.name
        moved = weight_ratios([weights[place] for place in mine], [stepped[place] for place in mine])
        features = [feature_ratio(before.output(matrix, place), after.output(matrix, place)) for place in mine]
        found["weights"][name], found["weights_step"][name] = _columns(moved)
        found["features"][name], found["features_step"][name] = _columns(features)
        found["alignment"][name] = [_short(aligned[place]) for place in mine]
        if matrix.feeds is not None:
            pairs = [(before.output(matrix, (name, block)), before.inputs[matrix.feeds, block]) for _, block in mine]
            found["activation"][name] = [_short(activation_ratio(pre, post)) for pre, post in pairs]
    streams = [feature_ratio(h, new) for h, new in zip(before.streams, after.streams, strict=True)]
    found["features"]["stream"], found["features_step"]["stream"] = _columns(streams)
    if not all(math.isfinite(value) for by in found.values() for values in by.values() for value in values):
        raise FloatingPointError("a quantity is not finite")
    return loss, found


def _weights(subject: Subject, places: dict[Matrix, list[Place]]) -> dict[Place, torch.Tensor]:
    """Copies of all measured matrices."""
    named = dict(subject.model.named_parameters())
    return {
        place: matrix.cut(named[matrix.parameter_at(place)].detach(), 0).clone()
        for matrix, mine in places.items()
        for place in mine
    }


def _alignment(
    subject: Subject, stepper: HybridOptimizer, matrix: Matrix, place: Place, weight: torch.Tensor, tape: Tape
) -> float:
    name = matrix.parameter_at(place)
    group = next(group for group in stepper.param_groups if name in group["names"])
    transposed = subject.infos[name].declaration.transposed
    return alignment(group, weight, tape.inputs[place], tape.delta(matrix, place), transposed=transposed)


def _columns(pairs: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    first, second = zip(*pairs, strict=True)
    return [_short(value) for value in first], [_short(value) for value in second]


def _short(value: float) -> float:
    """Six digits: more would only make the file larger."""
    return float(f"{value:.6g}")
