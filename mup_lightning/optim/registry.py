"""All update rules, their options as the section `rules` sets them, and the parameter groups that they step."""

from collections.abc import Mapping
from dataclasses import asdict
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

from mup_lightning.config.schema import Config
from mup_lightning.errors import UserError
from mup_lightning.optim.rule import Group, Rule
from mup_lightning.spectral.families import FAMILIES
from mup_lightning.spectral.recipe import Recipe, representable
from mup_lightning.spectral.roles import ParameterInfo
from mup_lightning.typed import build, unknown_key

Overrides = Mapping[str, Mapping[str, Any]]
"""Section -> option -> value: what differs from the rules' defaults, as `Config.rules` holds it."""


for _name in FAMILIES:
    if find_spec(f"{__package__}.{_name}"):
        import_module(f"{__package__}.{_name}")

RULES: dict[str, Rule] = {name: Rule.known[name]() for name in FAMILIES}
"""Every update rule by name, in the order of `FAMILIES`; each is in a module of this package named after a family."""

SECTIONS: dict[str, Rule] = {rule.section: rule for rule in RULES.values()}
"""Section of the options -> a rule that has them."""


def options_in_force(rules: Overrides, section: str) -> dict[str, Any]:
    """All options of a section's rule: its defaults, and what was set.

    Raises UserError where an option is unknown, or has a value that defines no update.
    """
    return asdict(build(type(SECTIONS[section]), rules.get(section, {}), f"rules.{section}."))


def used_sections(optimizer: str) -> list[str]:
    """The sections of the rules that a run uses: its optimizer's, and AdamW's where that one takes the rest."""
    names = [optimizer, "adamw"] if FAMILIES[optimizer].whole_matrix else [optimizer]
    return [RULES[name].section for name in names]


def resolve_rules(config: Config) -> None:
    """Check the section `rules` and fill in, in place, all options of every section that was set or will be used.

    Raises:
        UserError: a rule or an option is unknown, or a value defines no update.
    """
    for section in config.rules:
        if section not in SECTIONS:
            raise unknown_key(f"rules.{section}", [f"rules.{known}" for known in SECTIONS])
    sections = dict.fromkeys([*used_sections(config.recipe.optimizer), *config.rules])
    config.rules = {section: options_in_force(config.rules, section) for section in sections}
    chosen = FAMILIES[config.recipe.optimizer]
    own = config.rules[chosen.name].get("eps") if chosen.least_eps else None
    if (eps := config.recipe.eps if own is None else own) < chosen.least_eps:
        raise UserError(
            f"{chosen.name}'s base eps is {eps:g}, below the rounding of its float32 state, so that noise would decide "
            f"its steps (docs/results/probe.md); set rules.{chosen.name}.eps to {chosen.least_eps:g} or more "
            f"(recipes/optimizer/{chosen.name}.yaml has {chosen.base_eps:g})"
        )


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
        UserError: an option has a value that defines no update, or base values are set for a role or label that no
            parameter has.
    """
    kinds = {name for info in infos.values() for name in (info.role, info.label) if name}
    for name in sorted(set(recipe.own) - kinds):
        raise UserError(
            f"recipe.base.{name} is set, but nothing in this model is of that kind; it has {', '.join(sorted(kinds))}"
        )
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
