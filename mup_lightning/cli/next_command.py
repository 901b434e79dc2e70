"""The command that trains a tuned target: the one that tuned it, with what it found."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

Options = list[tuple[str, str]]

_OF_TUNE = ("sweep", "results", "out", "set", "workers")
_OF_MAKE = {
    "recipe.parametrization": "PARAM",
    "recipe.branch_depth": "BRANCH_DEPTH",
    "data.tokenizer": "TOKENIZER",
    "trainer.max_steps": "STEPS",
    "trainer.devices": "DEVICES",
    "trainer.nodes": "NODES",
    "data.batch_size": "BATCH",
    "recipe.lr": "LR",
    "recipe.weight_decay": "WD",
    "seed": "SEED",
    "run.name": "RUN",
}
_FILES_OF_MAKE = {"recipes/size": "SIZE", "recipes/optimizer": "OPT", "recipes/strategy": "STRATEGY"}


def training(argv: Sequence[str], file: Path, key: str) -> str:
    """`make train ...` where the recipes are named as make names them, else `mup-lightning train ...`.

    Args:
        argv: of `mup-lightning tune`.
        file: recipe file that it wrote.
        key: dotted key of the tuned value: an option that sets it would win over the file.
    """
    tuned = (key, "recipe.base_width", "recipe.base_depth")
    options = [(name, value) for name, value in _options(argv) if name not in (*_OF_TUNE, *tuned)]
    if any(name == "config" and str(Path(value).parent) == "recipes/size" for name, value in options):
        return _make([*options, ("config", str(file))])
    return shlex.join(["mup-lightning", "train", *_flags([*options, ("config", str(file))])])


def _options(argv: Sequence[str]) -> Options:
    found: Options = []
    items = iter(argv)
    for item in items:
        name, equals, value = item.partition("=")
        if name != "--dry-run":
            found.append(("config" if name == "-c" else name.lstrip("-"), value if equals else next(items, "")))
    return found


def _make(options: Options) -> str:
    """The later of two settings wins, as on the command line."""
    variables: dict[str, str] = {}
    files: list[str] = []
    rest: Options = []
    for name, value in options:
        folder = str(Path(value).parent)
        if name == "config" and folder in _FILES_OF_MAKE:
            variables[_FILES_OF_MAKE[folder]] = Path(value).stem
        elif name == "config":
            files += [value] if value != "recipes/gpt2.yaml" else []
        elif name in _OF_MAKE:
            variables[_OF_MAKE[name]] = value
        elif name != "data.path":
            rest.append((name, value))
    path = dict(options).get("data.path")
    if path is not None:
        variables |= _corpus(path, variables.get("TOKENIZER", ""))
    variables["CONFIG"] = " ".join(files)
    if rest:
        variables["ARGS"] = shlex.join(_flags(rest))
    return " ".join(["make train", *(f"{name}={shlex.quote(value)}" for name, value in variables.items())])


def _corpus(path: str, tokenizer: str) -> dict[str, str]:
    """The card of a corpus that make prepares, else its folder."""
    folder, name = str(Path(path).parent), Path(path).name
    card = Path("data") / f"{name.removesuffix(f'-{tokenizer}')}.yaml"
    if folder == "data/prepared" and name.endswith(f"-{tokenizer}") and card.is_file():
        return {"CARD": str(card)}
    return {"DATA": path}


def _flags(options: Options) -> list[str]:
    return [item for name, value in options for item in ("-c" if name == "config" else f"--{name}", value)]
