"""From recipe files, presets and options, applied left to right, to one checked configuration."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args, get_origin

from mup_lightning.config.imported import settings
from mup_lightning.config.schema import Config, leaves
from mup_lightning.errors import UserError, located
from mup_lightning.files import read_yaml
from mup_lightning.typed import Raw, convert, hints, key_of, options, unknown_key

Layer = Path | Mapping[str, Any]

RECIPES = Path("recipes")
"""Of the working directory. Its subfolders hold the presets: size=xl is recipes/size/xl.yaml."""

WORDS = {
    "param": "recipe.parametrization",
    "branch_depth": "recipe.branch_depth",
    "lr": "recipe.lr",
    "wd": "recipe.weight_decay",
    "devices": "trainer.devices",
    "nodes": "trainer.nodes",
    "steps": "trainer.max_steps",
    "batch": "data.batch_size",
    "data": "data.path",
    "tokenizer": "data.tokenizer",
    "weights": "model.weights",
    "run": "run.name",
    "resume": "run.resume",
}
"""Everyday words for the keys that are set most often, as in steps=200."""

GROUPS = ("size", "optimizer", "strategy", "model", "experiment", "slurm")
"""Subfolders of recipes/ whose names are words even where the folder is missing, which the message then says."""

_EXPECTED = "a recipe: sections such as model, recipe, data, trainer, with keys and values"


def build_config(layers: Sequence[Layer]) -> Config:
    """The configuration of recipe files and mappings such as {"model.width": 512}; later ones win.

    Raises UserError naming the file, the key, its value and what was expected.
    """
    return Config.from_plain(merge(layers, [Config]))


def merge(layers: Sequence[Layer], classes: Sequence[type]) -> dict[str, Any]:
    """Files and mappings, applied left to right, as nested plain values.

    Each value is checked against its type in `classes`, dataclasses whose fields are the keys. A preset that changes
    what was typed before it is said: that is allowed, but seldom meant.
    """
    flat: dict[str, Any] = {}
    typed: set[str] = set()
    for layer in layers:
        if isinstance(layer, Path):
            with located(layer):
                read = _read(layer, layer.stat().st_mtime_ns if layer.exists() else 0, tuple(classes))
            lost = ", ".join(sorted(key for key in typed & read.keys() if flat[key] != read[key]))
            if lost and layer.parent.name in GROUPS:
                print(f"note: {layer} overrides {lost}, set before it; put presets first", file=sys.stderr)
            flat |= read
        else:
            flat |= _checked(layer, classes)
            typed |= {key for key, value in layer.items() if isinstance(value, Raw)}
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, name = key.split(".")
        target = nested
        for section in sections:
            target = target.setdefault(section, {})
        target[name] = value
    return nested


@lru_cache(maxsize=256)
def _read(path: Path, changed: int, classes: Sequence[type]) -> Mapping[str, Any]:
    """A recipe file as dotted key -> value; `changed` is its time stamp, so that a sweep reads each file once."""
    content = read_yaml(path, _EXPECTED)
    if not isinstance(content, dict):
        found = "empty" if content is None else repr(content)
        raise UserError(f"{path} is {found}; expected {_EXPECTED}")
    return _checked(content, classes)


def _checked(values: Mapping[str, Any], classes: Sequence[type]) -> dict[str, Any]:
    """Nested or dotted values as dotted key -> value of the right type."""
    flat: dict[str, Any] = {}
    for key, value in leaves(values).items():
        hint = hint_of(key, classes)
        if hint is None:
            raise unknown_option(key, classes)
        own = next((key_of(cls, key) for cls in classes if key in hints(cls)), key)
        flat[key] = convert(value, hint, own)
    # A rule named anew is not that of the law in an earlier layer.
    return {"recipe.law": None} | flat if "recipe.time_rule" in flat else flat


def hint_of(key: str, classes: Sequence[type]) -> Any:
    """The type of a dotted key; None if no class has it."""
    first, *rest = key.split(".")
    hint = next((hints(cls)[first] for cls in classes if first in hints(cls)), None)
    for part in rest:
        inner = get_args(hint)[1] if get_origin(hint) is dict else None
        hint = hints(hint).get(part) if is_dataclass(hint) else inner
    return hint


def unknown_option(key: str, classes: Sequence[type]) -> UserError:
    """The error for a key that none of the classes has, with the nearest of all that can be set."""
    known = [option.key for cls in classes for option in options(cls)]
    return unknown_key(key, known + ([*GROUPS, *WORDS] if Config in classes else []))


def word(name: str, value: str) -> list[Layer]:
    """What name=value of a command line stands for: recipe files, a preset, or one key.

    `name` is "config" (files with blanks between them), a subfolder of recipes/, an everyday word, or a dotted key.
    Raises UserError where there is no such preset.
    """
    if name == "config":
        return [convert(file, Path, name) for file in value.split()]
    if name in GROUPS or (RECIPES / name).is_dir():
        return [preset(name, value)]
    if name == "weights":  # and the shape that they have
        return [{"model": settings(Path(value))}]
    return [{WORDS.get(name, name): Raw(value)}]


def preset(group: str, name: str) -> Path:
    """The file of a preset, such as recipes/size/xl.yaml. Raises UserError, with what there is, where there is none."""
    file = RECIPES / group / f"{name}.yaml"
    if not file.is_file():
        there = sorted(path.stem for path in (RECIPES / group).glob("*.yaml"))
        what = f"{group} can be: {' '.join(there)}" if there else f"presets are looked for in {Path.cwd() / RECIPES}"
        raise UserError(f"there is no {file}; {what}")
    return file
