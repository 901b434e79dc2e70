"""In what a proxy must be like the model that it is tuned for, and in what it may differ at a price."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import Any

from mup_lightning.config.schema import Config, leaves
from mup_lightning.optim.registry import SECTIONS, options_in_force, resolve_rules

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
    for config in (target, proxy):
        resolve_rules(config)
    theirs, ours = leaves(target.identity()), leaves(proxy.identity())
    skipped = {swept, *_FREE, *CAUTIONS, "schedule.warmup_steps"}
    # SP has no branch depth.
    if proxy.recipe.parametrization == target.recipe.parametrization == "sp":
        skipped.add("recipe.branch_depth")
    return [
        f"{key} is {ours[key]} in the proxy, {theirs[key]} in the target"
        for key in ours
        if key not in skipped and key in theirs and ours[key] != theirs[key]
    ]


def cautions(proxies: Sequence[Config], target: Config) -> list[str]:
    """What differs and is not transferred, in words: of a value that proxies differ in, all that they have."""
    found = []
    for key in CAUTIONS:
        theirs = _look_up(target, key)
        ours = sorted({_look_up(proxy, key) for proxy in proxies} - {"auto"})
        if theirs != "auto" and any(value != theirs for value in ours):
            found.append(f"{key} is {' or '.join(map(str, ours))} in the proxies, {theirs} in the target")
    share = warmup_share(target)
    # A difference of less than a step is rounding.
    if any(abs(warmup_share(proxy) - share) * proxy.trainer.max_steps >= 1 for proxy in proxies):
        shares = " or ".join(sorted({f"{warmup_share(proxy):.1%}" for proxy in proxies}))
        found.append(f"the warm-up takes {shares} of the run in the proxies, {share:.1%} in the target")
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
    usual = leaves({"rules": {section: options_in_force({}, section) for section in SECTIONS}})
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in leaves(proxy.identity()).items()
        if key not in skipped and key.startswith(("recipe.", "model.", "rules.")) and usual.get(key, usual) != value
    }


def _look_up(config: Config, key: str) -> Any:
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), name)


def as_proxy(target: Config, widths: Collection[int] = ()) -> dict[str, Any]:
    """The target's configuration as the start of its proxies': plain values, without shape, place and machines.

    The base shape stays: the recipe scales all base values from it, to smaller models as to larger ones. So does the
    dimension of the heads, which the recipe does not scale by, where it divides all widths.

    Args:
        target: what is tuned for.
        widths: of the proxies, as far as they are known.
    """
    plain = asdict(target)
    if widths and not any(width % target.model.head_dim for width in widths):
        plain["model"]["head_size"] = target.model.head_dim
    for key in ("width", "depth", "heads", "vocab_size", "loss_chunk"):
        del plain["model"][key]
    for key in ("strategy", "devices", "nodes"):
        del plain["trainer"][key]
    del plain["run"]
    return plain
