"""Targets and sweep files for the tests of tune."""

import csv

import yaml

from mup_lightning.config.load import build_config

TARGET = {
    "model.width": 64,
    "model.depth": 4,
    "model.context": 32,
    "recipe.optimizer": "adamw",
    "recipe.lr": 2**-7,
    "data.tokenizer": "bytes",
    "trainer.max_steps": 90,
    "trainer.accelerator": "cpu",
}


def target(corpus, **changes):
    """The configuration of a target of width 64 and depth 4."""
    return build_config([TARGET | {"data.path": str(corpus)} | {k.replace("__", "."): v for k, v in changes.items()}])


def options(corpus, *more):
    """The same on a command line."""
    return [f"--{key}={value}" for key, value in (TARGET | {"data.path": corpus}).items()] + list(more)


def proxies(folder, **changes):
    """A sweep file of models of a second: two widths, two depths, 30 steps."""
    sweep = {
        "value": "recipe.lr",
        "set": {
            "model.context": 16,
            "recipe.base_width": 16,
            "recipe.base_depth": 1,
            "data.batch_size": 8,
            "data.micro_batch": 8,
            "data.val_tokens": 512,
            "trainer.max_steps": 30,
        },
        "vary": {"seed": [0, 1], "recipe.lr": {"log2": [-7, -5, -3]}},
        "grids": [
            {"axis": "model.width", "set": {"model.depth": 1}, "vary": {"model.width": [16, 32]}},
            {"axis": "model.depth", "set": {"model.width": 16}, "vary": {"model.depth": [1, 2]}},
        ],
    }
    sweep["set"] = {key: value for key, value in sweep["set"].items() if key not in changes.get("vary", {})}
    sweep["set"] |= changes.pop("set", {})
    file = folder / "proxies.yaml"
    file.write_text(yaml.safe_dump({"sweep": sweep | changes}))
    return str(file)


def rows_of(folder):
    """The rows of a folder's table."""
    return list(csv.DictReader((folder / "results.csv").open()))
