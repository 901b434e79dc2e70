"""What each parameter is updated by: roles and recipe turned into torch parameter groups."""

from collections.abc import Mapping
from typing import Any

import torch

from mup_lightning.errors import UserError
from mup_lightning.model.parameters import ParameterInfo
from mup_lightning.optim.registry import RULES, Overrides, options_in_force
from mup_lightning.optim.rule import Group
from mup_lightning.spectral.recipe import Recipe, representable


def make_groups(
    parameters: Mapping[str, torch.Tensor],
    infos: Mapping[str, ParameterInfo],
    recipe: Recipe,
    rules: Overrides,
) -> list[Group]:
    """Turn roles and recipe into torch parameter groups.

    Parameters with equal hyper-parameters share a group, because every group costs time in every step. Besides torch's
    "params" a group holds their "infos" in the same order, the name of the "rule", lr, weight_decay, the rule's
    options, those that scale with the model and its run at their scaled values, and "gradient", the unit that clipping
    measures in.

    Args:
        parameters: of the model, by name.
        infos: what the model recorded of them.
        recipe: values by role.
        rules: options that differ from the rules' defaults, `Config.rules`.

    Raises:
        RuntimeError: a parameter has no info, or a whole-matrix rule would be given something else than the matrix.
        UserError: an option has a value that defines no update.
    """
    groups: dict[tuple[Any, ...], Group] = {}
    for name, parameter in parameters.items():
        if name not in infos:
            raise RuntimeError(f"parameter {name} was not declared by the model; declared are {sorted(infos)}")
        info = infos[name]
        values = recipe.of(info)
        rule = RULES[values.rule]
        if rule.whole_matrix and tuple(parameter.shape) != info.shape:
            raise RuntimeError(f"{rule.name} needs {name} whole, {info.shape}; it is {tuple(parameter.shape)}")
        representable(f"lr x weight_decay of {name}", values.lr * max(1.0, values.weight_decay))
        common = {"rule": rule.name, "lr": values.lr, "weight_decay": values.weight_decay, "gradient": values.gradient}
        key = (*common.values(), *values.scaled.values())
        if key not in groups:
            options = options_in_force(rules, rule.section)
            scaled = {
                option: representable(f"{option} of {name}", base * factor)
                for option, factor in values.scaled.items()
                for base in [recipe.eps if options[option] is None else options[option]]
            }
            averages = {option: options[option] ** power for option, power in values.powers.items()}
            if still := [option for option, decay in averages.items() if decay >= 1.0]:
                long = f"{still[0]} of {name} comes out as 1 for so long a run"  # an average that never moves
                raise UserError(f"{long}; lower its base value, or raise the batch")
            groups[key] = {"params": [], "infos": [], **common, **options, **scaled, **averages}
        groups[key]["params"].append(parameter)
        groups[key]["infos"].append(info)
    return list(groups.values())
