"""Train with random settings, and check that each ends in a step or in one line, never in a traceback.

    python -m tests.config.fuzz --count 2000 --seed 0

Some of all options get random values: of their own type, as it says itself, or of another; as a recipe file gives them
or as typed on a command line. What is accepted is planned at its size, then made small, and trained for two steps.
"""

import argparse
import json
import logging
import math
import os
import random
import tempfile
import traceback
import warnings
from collections import Counter
from dataclasses import asdict, is_dataclass, replace
from enum import Enum
from operator import attrgetter
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from tests.conftest import tiny_config, write_corpus

INTEGERS = (-1, 0, 1, 2, 3, 4, 7, 8, 16, 31, 32, 64, 100, 1000, 2**31, 2**63, 10**30)
FLOATS = (-1.0, -0.0, 0.0, 1e-320, 1e-300, 1e-30, 1e-8, 1e-3, 0.1, 0.5, 0.999999999999, 1.0, 2.0, 30.0, 1e10, 1e300)
TEXTS = ["a b", "", *". .. ü \0 ~ {} null off 1e-3 - a/b / last [1 &".split(" "), "x" * 300]
OTHER = [None, True, False, math.nan, math.inf, -math.inf, [], {}, [1], {"a": 1}, [[]], {"lr": -1}, b"x", 0.5, "text"]
SIZES = {"model.width": 32, "model.depth": 2, "model.context": 16, "model.mlp_ratio": 4, "data.batch_size": 8}
"""Options that set what a step costs -> the most that is trained."""


def of_type(hint: Any, chance: random.Random, alternatives: dict[str, Any]) -> Any:
    """A random value for an option of this type; out of its bounds now and then."""
    origin, arguments = get_origin(hint), get_args(hint)
    if chance.random() < 0.1:
        return chance.choice(OTHER)
    if origin is Annotated:
        return of_type(arguments[0], chance, alternatives)
    if origin in (Union, UnionType):
        return of_type(chance.choice(arguments), chance, alternatives)
    if origin is Literal:
        return chance.choice(arguments)
    if origin in (list, tuple):
        return [of_type(arguments[0], chance, alternatives) for _ in range(chance.choice([len(arguments), 0, 1]))]
    if origin is dict:
        keys = [*alternatives, "x"]
        return {chance.choice(keys): of_type(arguments[1], chance, alternatives) for _ in range(chance.randint(0, 2))}
    if is_dataclass(hint):
        from mup_lightning.typed import hints

        some = [item for item in hints(hint).items() if chance.random() < 0.5]
        return {name: of_type(inner, chance, alternatives) for name, inner in some}
    if isinstance(hint, type) and issubclass(hint, Enum):
        return chance.choice(list(hint)).value
    pools = {int: INTEGERS, float: FLOATS, bool: (True, False), NoneType: (None,), str: TEXTS, Path: TEXTS}
    return chance.choice(pools.get(hint, OTHER))


def all_options() -> dict[str, Any]:
    """Every option -> its type."""
    from mup_lightning.config.schema import Config
    from mup_lightning.optim.registry import SECTIONS
    from mup_lightning.typed import options

    found = {option.key: option.hint for option in options(Config)}
    for section, rule in SECTIONS.items():
        found |= {f"rules.{section}.{option.key}": option.hint for option in options(type(rule))}
    return found


def settings(known: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    """Some options with values of their types; sometimes as typed on a command line."""
    from mup_lightning.spectral.roles import LABELS, Role
    from mup_lightning.typed import Raw

    keys = chance.sample(list(known), chance.randint(1, 6)) + ["recipe.optimizer"] * chance.randint(0, 1)
    found = {key: of_type(known[key], chance, dict.fromkeys([*map(str, Role), *LABELS])) for key in keys}
    if chance.random() < 0.5:
        found = {
            key: Raw(value if isinstance(value, str) else json.dumps(value, default=str))
            for key, value in found.items()
        }
    return found


def attempt(values: dict[str, Any], base: dict[str, Any], root: Path) -> str:
    """Plan and train with these settings on top of a tiny configuration; what came of it."""
    from mup_lightning.config.load import build_config
    from mup_lightning.errors import Diverged, UserError
    from mup_lightning.plan.plan import plan
    from mup_lightning.training.train import settle, train

    try:
        config = build_config([base, values])
        plan(config, (1, 8))
        settle(config)
        sizes = {key: min(most, attrgetter(key)(config)) for key, most in SIZES.items()}
        sizes |= {"trainer.max_steps": min(2, config.trainer.max_steps), "data.workers": 0}
        alone = {"strategy": "single", "devices": 1, "nodes": 1, "compile": "off", "accelerator": "cpu"}
        sizes |= {f"trainer.{key}": value for key, value in alone.items()}
        warmup = config.schedule.warmup_steps
        sizes |= {} if warmup is None else {"schedule.warmup_steps": min(warmup, sizes["trainer.max_steps"] - 1)}
        config = build_config([asdict(config), sizes])
        config = replace(config, run=replace(config.run, root=str(root / config.run.root)))
        train(config, progress=False, keep=False)
    except Diverged:
        return "diverged"
    except UserError:
        return "refused"
    except OSError as error:
        if error.filename is None:
            raise
        return "refused"
    return "trained"


def main(count: int, seed: int) -> bool:
    """Try `count` settings, print what came of them, and return whether none ended in a traceback."""
    from mup_lightning.config.schema import leaves

    outcomes, known = Counter[str](), all_options()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        base = leaves(asdict(tiny_config(write_corpus(Path(scratch) / "corpus"), "runs")))
        del base["model.vocab_size"]
        for number in range(count):
            values = settings(known, random.Random(f"{seed} {number}"))
            try:
                outcomes[attempt(values, base, Path(scratch))] += 1
            except Exception as error:
                outcomes["traceback"] += 1
                frames = traceback.extract_tb(error.__traceback__)
                ours = [frame for frame in frames if "mup_lightning/" in frame.filename]
                place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "the fuzz itself"
                print(f"{number}: {values}: {type(error).__name__} {str(error)[:200]!r} in {place}", flush=True)
    print(f"{count} settings: " + ", ".join(f"{number} {outcome}" for outcome, number in sorted(outcomes.items())))
    return not outcomes["traceback"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    raise SystemExit(not main(arguments.count, arguments.seed))
