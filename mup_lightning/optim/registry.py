"""All update rules, and their options as the configuration's section `rules` sets them."""

from collections.abc import Mapping
from dataclasses import asdict
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from mup_lightning.config.schema import Config
from mup_lightning.errors import UserError
from mup_lightning.optim.rule import Rule
from mup_lightning.spectral.families import FAMILIES
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
