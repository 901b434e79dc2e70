"""The command that trains a tuned target: the recipe files of the tune, what it found, and what they leave open."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml

from mup_lightning.config.load import merge
from mup_lightning.config.schema import Config, leaves
from mup_lightning.errors import UserError
from mup_lightning.training.checkpoint import RunFolder, plain

Options = list[tuple[str, str]]

_OF_MAKE = {
    "recipe.branch_depth": "BRANCH_DEPTH",
    "trainer.max_steps": "STEPS",
    "trainer.devices": "DEVICES",
    "trainer.nodes": "NODES",
    "data.batch_size": "BATCH",
    "recipe.lr": "LR",
    "recipe.weight_decay": "WD",
    "seed": "SEED",
}
"""Options that make gives only where their variable is set."""

_FILES_OF_MAKE = {"recipes/size": "SIZE", "recipes/optimizer": "OPT", "recipes/strategy": "STRATEGY"}


def training(files: Sequence[str], goal: Config) -> str:
    """`make train ...` where a size is named as make names it, else `mup-lightning train ...`.

    Options win over files in both, and make gives some options always. So those are taken from the goal, and whatever
    the files and they would make different is added as an option: the order of the tune's own options plays no part.

    Args:
        files: recipe files in their order, the tuned one last.
        goal: what the command is to train, exactly.
    """
    return _make(files, goal) or shlex.join(["mup-lightning", "train", *_named(files), *_flags(_left(files, [], goal))])


def tuned_target(target: Config, file: Path) -> Config:
    """The target with the values of a tuned file, as a run of its own: under a name that no run has yet.

    Args:
        target: what was tuned for.
        file: recipe file that tune wrote.
    """
    values = _merged(asdict(target), yaml.safe_load(file.read_text(encoding="utf-8")))
    values["run"]["resume"] = None  # neither a checkpoint nor the name of a run with other values serves
    config = Config.from_plain(values)
    names = (f"{target.run.name}{ending}" for ending in ("", "-tuned", *map("-tuned-{}".format, range(2, 1000))))
    config.run = replace(config.run, name=next(name for name in names if not _used(config, name)))
    return config


def _used(config: Config, name: str) -> bool:
    try:
        RunFolder(replace(config, run=replace(config.run, name=name))).refuse_used()
    except UserError:
        return True
    return False


def _merged(values: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    both = {k: _merged(values[k], v) if isinstance(v, dict) else v for k, v in others.items()}
    return values | both


def _make(files: Sequence[str], goal: Config) -> str:
    """Empty where no size is named, or make cannot pass a name on."""
    named: dict[str, str] = {"OPT": goal.recipe.optimizer, "STRATEGY": goal.trainer.strategy}
    others = []
    for file in map(Path, files):
        if str(file.parent) in _FILES_OF_MAKE and file.suffix == ".yaml":
            named[_FILES_OF_MAKE[str(file.parent)]] = file.stem
        elif file != Path("recipes/gpt2.yaml"):
            others.append(str(file))
    first = ["recipes/gpt2.yaml", *(f"{folder}/{named.get(name)}.yaml" for folder, name in _FILES_OF_MAKE.items())]
    if not all(Path(file).is_file() for file in first):
        return ""
    variables = {name: named[name] for name in _FILES_OF_MAKE.values()}
    variables |= {"PARAM": goal.recipe.parametrization, "TOKENIZER": goal.data.tokenizer, "RUN": goal.run.name}
    always = [
        ("recipe.parametrization", goal.recipe.parametrization),
        ("data.path", goal.data.path),
        ("data.tokenizer", goal.data.tokenizer),
        ("run.name", goal.run.name),
    ]
    left = _left([*first, *others], always, goal)
    variables |= {_OF_MAKE[key]: value for key, value in left if key in _OF_MAKE}
    variables |= _corpus(goal.data.path, goal.data.tokenizer)
    if any(shlex.quote(text) != text for text in (*variables.values(), *others)):
        return ""
    variables["CONFIG"] = " ".join(others)
    if rest := [(key, value) for key, value in left if key not in _OF_MAKE]:
        variables["ARGS"] = shlex.join(_flags(rest)).replace("$", "$$")
    return " ".join(["make train", *(f"{name}={shlex.quote(value)}" for name, value in variables.items())])


def _left(files: Sequence[str], options: Options, goal: Config) -> Options:
    """The options that are still needed to make the goal of recipe files and options."""
    # Not built: without the options that are still needed, values may contradict each other.
    merged = merge([*map(Path, files), dict(options)], [Config])
    given = leaves(plain(asdict(Config()))) | {"model.vocab_size": None} | leaves(plain(merged))
    found = []
    for key, value in leaves(plain(asdict(goal))).items():
        follows = key == "model.vocab_size" and given[key] is None  # it is the tokenizer's
        if given[key] != value and not follows:
            found.append((key, value if isinstance(value, str) else json.dumps(value)))
    return found


def _corpus(path: str, tokenizer: str) -> dict[str, str]:
    """The card of a corpus that make prepares, else its folder."""
    folder, name = str(Path(path).parent), Path(path).name
    card = Path("data") / f"{name.removesuffix(f'-{tokenizer}')}.yaml"
    if folder == "data/prepared" and name.endswith(f"-{tokenizer}") and card.is_file():
        return {"CARD": str(card)}
    return {"DATA": path}


def _named(files: Sequence[str]) -> list[str]:
    return [item for file in files for item in ("-c", file)]


def _flags(options: Options) -> list[str]:
    return [item for key, value in options for item in (f"--{key}", value)]
