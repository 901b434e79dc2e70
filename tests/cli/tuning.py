"""Targets and sweep files for the tests of tune."""

import csv

import yaml

from mup_lightning.cli.options import build, config_parser, parse


def options(corpus, *more):
    """Of a target of width 64 and depth 4."""
    fixed = {
        "model.width": 64,
        "model.depth": 4,
        "model.context": 32,
        "recipe.optimizer": "adamw",
        "recipe.lr": 2**-7,
        "data.path": corpus,
        "data.tokenizer": "bytes",
        "trainer.max_steps": 90,
        "trainer.accelerator": "cpu",
    }
    return [f"--{key}={value}" for key, value in fixed.items()] + list(more)


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
        "vary": {"seed": [0, 1], "recipe.lr": {"log2": [-9, -7, -5, -3]}},
        "grids": [
            {"axis": "model.width", "set": {"model.depth": 1}, "vary": {"model.width": [16, 32]}},
            {"axis": "model.depth", "set": {"model.width": 16}, "vary": {"model.depth": [1, 2]}},
        ],
    }
    sweep["set"] = {key: value for key, value in sweep["set"].items() if key not in changes.get("vary", {})}
    file = folder / "proxies.yaml"
    file.write_text(yaml.safe_dump({"sweep": sweep | changes}))
    return str(file)


def rows_of(folder):
    return list(csv.DictReader((folder / "results.csv").open()))


def of(*argv):
    """The target of a command line."""
    parser = config_parser("test", "", "")
    return build(parser, parse(parser, list(argv)))
