"""In what a proxy must be like the model that it is tuned for, and in what it may differ at a price."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from mup_lightning.optim.options import RuleOptions
from mup_lightning.training.config import Config

SHAPE = ("model.width", "model.depth", "recipe.base_width", "recipe.base_depth")
"""What the recipe is for: it may differ."""

_FREE = (*SHAPE, "model.heads", "model.head_size", "model.vocab_size", "model.loss_chunk", "seed")
"""Heads are compared by the dimension that follows from them, see below."""

CAUTIONS = (
    "data.tokenizer",
    "data.batch_size",
    "data.path",
    "model.context",
    "model.head_dim",
    "model.dropout",
    "trainer.max_steps",
    "trainer.precision",
    "trainer.gradient_clip",
    "schedule.min_lr",
)
"""What moves the best values too, in ways that no recipe here follows. All else must be the same."""


def differences(proxy: Config, target: Config, swept: str) -> list[str]:
    """What makes a proxy useless for a target, in words: optimizer, parametrization, base values, LayerNorm and so on.

    Args:
        proxy: a small model's configuration.
        target: the large model's.
        swept: dotted key of the value that is tuned.
    """
    theirs, ours = _flat(target.identity()), _flat(proxy.identity())
    skipped = {swept, *_FREE, *CAUTIONS, "schedule.warmup_steps"}
    # SP has no branch depth, and the shape it was tuned at means nothing to it.
    if proxy.recipe.parametrization == target.recipe.parametrization == "sp":
        skipped.add("recipe.branch_depth")
    return [
        f"{key} is {ours[key]} in the proxy, {theirs[key]} in the target"
        for key in ours
        if key not in skipped and ours[key] != theirs[key]
    ]


def cautions(proxy: Config, target: Config) -> list[str]:
    """What differs and is not transferred, in words."""
    found = []
    for key in CAUTIONS:
        ours, theirs = _look_up(proxy, key), _look_up(target, key)
        if ours != theirs and "auto" not in (ours, theirs):
            found.append(f"{key} is {ours} in the proxies, {theirs} in the target")
    ours, theirs = warmup_share(proxy), warmup_share(target)
    if abs(ours - theirs) * proxy.trainer.max_steps >= 1:  # less is rounding
        found.append(f"the warm-up takes {ours:.1%} of the run in the proxies, {theirs:.1%} in the target")
    return found


def warmup_share(config: Config) -> float:
    """Part of the run that the warm-up takes: schedules are alike when this is equal, not the steps."""
    steps = config.schedule.warmup_steps
    return 0.1 if steps is None else steps / config.trainer.max_steps


def belongings(proxy: Config, swept: str) -> dict[str, Any]:
    """What a tuned value is meant with, dotted key -> value.

    These are the options of recipe and model that `differences` compares, and those of update rules where they are not
    the default.
    """
    skipped = {swept, *_FREE, *CAUTIONS}
    if proxy.recipe.parametrization == "sp":
        skipped.add("recipe.branch_depth")
    usual = _flat({"rules": asdict(RuleOptions())})
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in _flat(proxy.identity()).items()
        if key not in skipped and key.startswith(("recipe.", "model.", "rules.")) and usual.get(key, usual) != value
    }


def _look_up(config: Config, key: str) -> Any:
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), name)


def _flat(plain: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in plain.items():
        name = f"{prefix}{key}"
        result |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return result


def as_proxy(target: Config) -> dict[str, Any]:
    """The target's configuration as the start of its proxies': plain values, without shape, place and machines.

    The base shape stays: the recipe scales all base values from it, to smaller models as to larger ones.
    """
    plain = asdict(target)
    for key in ("width", "depth", "heads", "vocab_size", "loss_chunk"):
        del plain["model"][key]
    for key in ("strategy", "devices", "nodes"):
        del plain["trainer"][key]
    del plain["run"]
    return plain
