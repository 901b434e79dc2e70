"""A tiny sweep, shared by the tests of sweeps."""

import csv

import yaml


def tiny_sweep(corpus, **changes):
    """Plain values of a sweep file: two learning rates and two seeds at one shape; changes replace keys of `sweep`."""
    fixed = {
        "model.width": 16,
        "model.depth": 1,
        "model.context": 16,
        "recipe.base_width": 16,
        "recipe.base_depth": 1,
        "recipe.optimizer": "adamw",
        "data.path": str(corpus),
        "data.tokenizer": "bytes",
        "data.batch_size": 8,
        "data.micro_batch": 8,
        "data.val_tokens": 512,
        "trainer.max_steps": 60,
        "trainer.accelerator": "cpu",
    }
    fixed = {key: value for key, value in fixed.items() if key not in changes.get("vary", {})}
    sweep = {"name": "tiny", "set": fixed, "vary": {"recipe.lr": {"log2": [-8, -6]}, "seed": [0, 1]}}
    return {"sweep": sweep | changes}


def write(folder, content):
    """Write a sweep file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return file


def table(folder):
    """The rows of a sweep's results; none where there is no table yet."""
    file = folder / "results.csv"
    return list(csv.DictReader(file.open())) if file.exists() else []
