"""One network, trained for a few steps: ‖A‖_R of every parameter at every step.

A = -(W_after - W_before)/η at weight decay 0. The step itself is then put in place of the optimizer's own: of the same
direction, but of the size ‖ΔW‖_R that the condition asks for at this width and depth. So the networks of all sizes stay
on the condition whatever the optimizer, none needs a tuned learning rate, and ‖A‖_R is measured where the recipe that
divides by it would be used. An optimizer that looks at gradients alone (nearly all do) cannot tell the difference.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from mup_lightning.errors import UserError
from mup_lightning.optim.norms import rms_operator, spectral_norms, stable_rank
from mup_lightning.spectral.condition import solve
from mup_lightning.spectral.recipe import RecipeConfig, derive
from mup_lightning.spectral.roles import Role
from mup_lightning.studies.probe.candidate import Candidate
from mup_lightning.studies.probe.network import ResidualMLP
from mup_lightning.studies.probe.settings import ProbeSettings
from mup_lightning.studies.probe.task import batches


def build_network(settings: ProbeSettings, width: int, depth: int, seed: int) -> ResidualMLP:
    """A network on the condition: at the base every layer keeps the size of its input, and branches are small."""
    base_width, base_depth = settings.base
    std = base_width**-0.5
    config = RecipeConfig(
        optimizer="adamw",  # inits and multipliers are the same for all
        branch_depth=settings.branch_depth,
        init_std=std,
        input_multiplier=1 / (std * settings.inputs**0.5),
        residual_multiplier=1 / base_depth if settings.branch_depth > 1 else base_depth**-0.5,
        # Small logits at the start: a random head's shrink as 1/√n, and narrow networks would begin at larger losses.
        output_multiplier=0.25,
        base_width=base_width,
        base_depth=base_depth,
    )
    recipe = derive(config, width, depth)
    return ResidualMLP(
        width,
        depth,
        branch_depth=settings.branch_depth,
        inputs=settings.inputs,
        classes=settings.classes,
        multipliers=recipe.multipliers,
        init_std={role: values.init_std for role, values in recipe.values.items()},
        seed=seed,
    )


def step_sizes(settings: ProbeSettings, width: int, depth: int) -> dict[Role, float]:
    """‖ΔW‖_R of a step for each role: a share of the base network's weights, scaled as the condition asks."""
    base_width, base_depth = settings.base
    std, D, K = base_width**-0.5, settings.inputs, settings.classes
    weights = {
        Role.INPUT: std * D**0.5,
        Role.HIDDEN: 1.0,
        Role.OUTPUT: std * base_width / K**0.5,
        Role.INPUT_BIAS: std * D**0.5,
        Role.HIDDEN_BIAS: 1.0,
    }
    return {
        role: settings.step_size
        * weights[role]
        * solve(role, settings.branch_depth).update.at(width / base_width, depth / base_depth)
        for role in Role
    }


def measure(
    candidate: Candidate,
    settings: ProbeSettings,
    width: int,
    depth: int,
    seed: int,
    on_step: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Train one network and record its directions.

    Args:
        candidate: the optimizer.
        settings: see there.
        width: n.
        depth: L.
        seed: of weights, task and data.
        on_step: called after every step.

    Returns:
        Plain values: "width", "depth", "seed", "losses" (before each step), and "roles": role -> "direction" (‖A‖_R of
        each step, the geometric mean over the role's parameters), "update" (the raw ‖ΔW‖_R at `candidate.rate`, before
        it is rescaled) and "stable_rank" (of A). None where a step changed nothing.

    Raises:
        UserError: a step was not finite.
    """
    torch.manual_seed(seed)  # for optimizers that draw numbers; all of ours comes from generators
    network = build_network(settings, width, depth, seed).to(candidate.dtype)
    r_n, r_L = (size / base for size, base in zip((width, depth), settings.base, strict=True))
    stepper = candidate.build(network, r_n, r_L)
    sizes = step_sizes(settings, width, depth)
    roles: dict[Role, dict[str, list[float | None]]] = {
        role: {"direction": [], "update": [], "stable_rank": []} for role in candidate.roles
    }
    losses = []
    own_labels = torch.Generator().manual_seed(seed + 1)
    data = batches(seed, settings.batch, settings.inputs, settings.classes)
    for number in range(settings.steps):
        x, labels = next(data)
        x = x.to(candidate.dtype)
        network.zero_grad()
        logits = network(x)
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        losses.append(loss.item())
        drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=own_labels).squeeze(1)
        before = {name: p.detach().clone() for name, p in network.named_parameters()}

        def loss_on_own_labels(x: torch.Tensor = x, drawn: torch.Tensor = drawn) -> torch.Tensor:
            return F.cross_entropy(network(x), drawn)

        stepper.step(loss_on_own_labels, settings.batch)
        try:
            directions = _replace_step(network, before, candidate.lr, sizes)
        except FloatingPointError:
            raise UserError(
                f"{candidate.name} made a step that is not finite: step {number + 1} at width {width}, depth {depth}. "
                f"It cannot be probed with these arguments; try others with --arguments"
            ) from None
        for role, found in roles.items():
            mine = [directions[name] for name, info in network.infos.items() if info.role is role]
            size, rank = (geometric_mean([values[place] for values in mine]) for place in (0, 1))
            found["direction"].append(size)
            found["update"].append(None if size is None else size * candidate.rate(role, r_n, r_L))
            found["stable_rank"].append(rank)
        on_step()
    return {
        "width": width,
        "depth": depth,
        "seed": seed,
        "losses": losses,
        "roles": {str(role): found for role, found in roles.items()},
    }


def geometric_mean(values: list[float]) -> float | None:
    """Of sizes that are all above 0; None where one is not."""
    if not values or not all(value > 0 for value in values):
        return None
    return math.exp(math.fsum(map(math.log, values)) / len(values))


@torch.no_grad()
def _replace_step(
    network: ResidualMLP, before: dict[str, torch.Tensor], lr: float, sizes: dict[Role, float]
) -> dict[str, tuple[float, float]]:
    """Put steps of the condition's size in place of the optimizer's. Returns name -> (‖A‖_R, stable rank of A)."""
    names, parameters = zip(*network.named_parameters(), strict=True)
    changes = [parameter - before[name] for name, parameter in zip(names, parameters, strict=True)]
    found = {}
    for name, parameter, change, spectral in zip(names, parameters, changes, spectral_norms(changes), strict=True):
        size = rms_operator(spectral, network.infos[name])
        found[name] = (size / lr, stable_rank(change, spectral))
        wanted = sizes[network.infos[name].role] / size if size > 0 else 0.0
        parameter.copy_(before[name] + wanted * change)
    return found
