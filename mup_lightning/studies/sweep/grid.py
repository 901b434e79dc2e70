"""From a sweep file to its trials: each built, checked and hashed before the first one runs."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from itertools import product
from typing import Any

from mup_lightning.config.load import build_config
from mup_lightning.config.schema import Config, RunConfig, leaves
from mup_lightning.errors import UserError
from mup_lightning.optim.registry import SECTIONS, options_in_force, used_sections
from mup_lightning.studies.sweep.check import Checked, Checker
from mup_lightning.studies.sweep.spec import AXES, Grid, Sweep
from mup_lightning.tables import power_of_two

_HASHED_RULES = "adamw muon sgd lion sophia shampoo soap sso".split()
"""Sections of rules that every hash covers, used or not, as those of published tables do. Do not add to them: a rule
that is not among them is in the hashes of the runs that use it."""


@dataclass(frozen=True)
class Trial:
    """One configuration of a sweep.

    Attributes:
        config: resolved; its run folder is the sweep's to choose.
        hash: of everything that determines its numbers, the contents of the corpus included.
        checked: its corpus and its cost.
        axes: "width", "depth" or "both": of every grid that it belongs to.
        value: the dotted key that is swept.
        varied: dotted key -> value, of all keys that vary in the sweep.
        label: what tells it from the others, such as "mup width=64 lr=2^-7 seed=1".
    """

    config: Config
    hash: str
    checked: Checked
    axes: tuple[str, ...]
    value: str
    varied: dict[str, Any]
    label: str = ""


def expand(sweep: Sweep, defaults: Mapping[str, Any] | None = None) -> list[Trial]:
    """All trials, those of most work first; those that several grids name are one.

    Args:
        sweep: see `load`.
        defaults: dotted key -> value, below everything that the sweep says.

    Raises:
        UserError: a configuration that training would refuse, naming the file, the grid and the values; or nothing is
            swept.
    """
    keys = _varying(sweep.grids)
    checker = Checker()
    trials: dict[str, Trial] = {}
    for number, grid in enumerate(sweep.grids, start=1):
        for combination in product(*grid.vary.values()):
            values = dict(zip(grid.vary, combination, strict=True))
            try:
                config = build_config([defaults or {}, *grid.configs, grid.set | values])
                _refuse_no_number(config, sweep.value)
                if config.run.resume is not None:
                    raise UserError("run.resume is set; a sweep starts every run anew")
                checked = checker.check(config)
            except UserError as error:
                where = ", ".join(f"{key} {value}" for key, value in values.items())
                raise UserError(f"{sweep.file}: grid {number}{f' at {where}' if where else ''}: {error}") from None
            config.run = RunConfig()
            name = config_hash(config, checked.corpus)
            axes = (*trials[name].axes, _axis(grid)) if name in trials else (_axis(grid),)
            varied = {key: look_up(config, key) for key in keys}
            trials[name] = Trial(config, name, checked, tuple(dict.fromkeys(axes)), sweep.value, varied)
    if all(look_up(trial.config, sweep.value) <= 0 for trial in trials.values()):
        raise UserError(
            f"{sweep.file}: sweep.value is {sweep.value}, which is 0 or less in every configuration, so that there "
            f"would be nothing to compare; give it values above 0 under vary, or name another key"
        )
    return sorted(_labelled(list(trials.values()), keys), key=lambda trial: (-trial.checked.work, trial.hash))


def _varying(grids: tuple[Grid, ...]) -> list[str]:
    """Keys that a grid varies, or that grids set differently from one another."""
    keys = [key for grid in grids for key in grid.vary]
    for key in (key for grid in grids for key in grid.set):
        if any(grid.set.get(key, grids) != grids[0].set.get(key, grids) for grid in grids):
            keys.append(key)
    return list(dict.fromkeys(keys))


def _labelled(trials: list[Trial], keys: list[str]) -> list[Trial]:
    """The trials with labels of what differs between them."""
    names = {key: f"{key.rpartition('.')[2]}=" for key in keys} | {"recipe.optimizer": "", "recipe.parametrization": ""}
    shown = dict.fromkeys(["recipe.optimizer", "recipe.parametrization", *keys])
    differing = [key for key in shown if len({str(look_up(trial.config, key)) for trial in trials}) > 1]
    result = []
    for trial in trials:
        sp = trial.config.recipe.parametrization == "sp"  # which has no branch depth
        own = {key: look_up(trial.config, key) for key in differing if not (sp and key == "recipe.branch_depth")}
        label = " ".join(f"{names[key]}{_short(value)}" for key, value in own.items())
        result.append(replace(trial, label=label or trial.hash[:12]))
    return result


def _short(value: Any) -> str:
    """Fractions that are powers of two as such."""
    return power_of_two(value) if isinstance(value, float) and 0 < value < 1 else str(value)


def shard(trials: list[Trial], text: str) -> list[Trial]:
    """Every N-th trial from the I-th on, for the text I/N: as much work for each shard."""
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise UserError(f"--shard is {text}; expected I/N with I from 1 to N, such as 1/4")
    return trials[int(number) - 1 :: int(of)]


def config_hash(config: Config, corpus: str) -> str:
    """sha256 of all that determines the numbers of a run.

    Args:
        config: resolved. What must be equal to continue a run exactly, and what may then still change its length or
            its last digits.
        corpus: hash of the corpus's manifest.
    """
    trainer, data = config.trainer, config.data
    more: dict[str, Any] = {"max_steps": trainer.max_steps, "accelerator": trainer.accelerator}
    more |= {"micro_batch": data.micro_batch, "val_tokens": data.val_tokens}
    hashed = dict.fromkeys([*_HASHED_RULES, *used_sections(config.recipe.optimizer)])
    rules = {name: options_in_force(config.rules, name) for name in hashed}
    plain = config.identity() | {"rules": rules, "run": more, "corpus": corpus}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _axis(grid: Grid) -> str:
    """What the size is in a grid: what the file says, else what varies."""
    if grid.axis is not None:
        return AXES[grid.axis]
    return "depth" if len(grid.vary.get("model.depth", ())) > 1 else "width"


def look_up(config: Config, key: str) -> Any:
    """The value of a dotted key.

    Raises:
        UserError: there is none.
    """
    section, _, option = key.removeprefix("rules.").partition(".")
    if key.startswith("rules.") and section in SECTIONS:
        options = options_in_force(config.rules, section)
        if option in options:
            return options[option]
    value: Any = config
    for name in key.split("."):
        if not hasattr(value, name):
            near = get_close_matches(key, leaves(asdict(config)), n=1, cutoff=0.5)
            raise UserError(f"unknown option {key}" + (f"; did you mean {near[0]}?" if near else ""))
        value = getattr(value, name)
    return value


def _refuse_no_number(config: Config, key: str) -> None:
    value = look_up(config, key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(
            f"sweep.value is {key}, which is {value!r:.40}; expected the key of a number, such as recipe.lr"
        )
