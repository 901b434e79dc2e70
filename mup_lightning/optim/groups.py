"""Parameter groups: equal hyper-parameters share one group, because every group costs time in every step."""

from __future__ import annotations

from typing import Any

from torch import nn

from mup_lightning.config.optimizers import RuleOptions
from mup_lightning.model.parameters import ParameterInfo
from mup_lightning.optim.optimizer import RULES
from mup_lightning.spectral.recipe import Recipe, Values


def make_groups(
    named_parameters: dict[str, nn.Parameter],
    infos: dict[str, ParameterInfo],
    recipe: Recipe,
    options: RuleOptions,
) -> list[dict[str, Any]]:
    """Turn roles and recipe into torch parameter groups.

    Args:
        named_parameters: the model's parameters by name.
        infos: what the model recorded of them.
        recipe: values by role.
        options: what can be set of the rules themselves.

    Returns:
        One group for each distinct set of hyper-parameters, in order of first appearance. Beside torch's "params" and
        the hyper-parameters, a group holds the parameters' "names", "blocks" and "transposed" in the same order.

    Raises:
        RuntimeError: a parameter has no info, or a whole-matrix rule is given something that is no matrix.
    """
    merged: dict[tuple[str, float, float, float | None], dict[str, Any]] = {}
    for name, parameter in named_parameters.items():
        if name not in infos:
            raise RuntimeError(f"parameter {name} was not declared by the model; declared are {sorted(infos)}")
        info = infos[name]
        values = recipe.values[info.role]
        rule = RULES[values.rule]
        if rule.whole_matrix and tuple(parameter.shape) != info.shape:
            raise RuntimeError(f"{rule.name} needs {name} whole, {info.shape}; it is {tuple(parameter.shape)}")
        key = hyperparameters(values)
        if key not in merged:
            merged[key] = {
                "params": [],
                "names": [],
                "blocks": [],
                "transposed": [],
                "rule": values.rule,
                "lr": values.lr,
                "weight_decay": values.weight_decay,
                "eps": values.eps,
                **rule.hyperparameters(options),
            }
        merged[key]["params"].append(parameter)
        merged[key]["names"].append(name)
        merged[key]["blocks"].append(info.declaration.blocks)
        merged[key]["transposed"].append(info.declaration.transposed)
    return list(merged.values())


def hyperparameters(values: Values) -> tuple[str, float, float, float | None]:
    """What parameters must have in common to share a group; the init is over by then."""
    return (values.rule, values.lr, values.weight_decay, values.eps)
