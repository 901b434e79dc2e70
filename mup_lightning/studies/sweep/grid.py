"""From a sweep file to its configurations: each built, checked and hashed before the first one runs."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from difflib import get_close_matches
from itertools import product
from typing import Any

from mup_lightning.config.schema import Config, RunConfig, leaves
from mup_lightning.errors import UserError
from mup_lightning.studies.sweep.spec import AXES, Grid, Sweep

Compose = Callable[[Sequence[str], dict[str, Any]], Config]
"""Recipe files and dotted settings -> Config, by the rules of the command line."""


@dataclass(frozen=True)
class Cell:
    """One configuration of a sweep.

    Attributes:
        config: resolved; its run folder is the sweep's to choose.
        hash: of everything that determines its numbers, the corpus's contents among it.
        corpus: the manifest's hash.
        unigram_loss: of the corpus, nats per token.
        axes: "width", "depth" or "both": of every grid that it stands in.
        varied: dotted key -> value, of all keys that vary in the sweep.
        label: what tells it from the others, such as "mup width=64 lr=2^-7 seed=1".
        value: dotted key of what is swept.
        tokens: in the run.
        flops: of the run, as computed.
        work: expected time, in operations of one busy core.
        memory: bytes that training takes at its peak.
    """

    config: Config
    hash: str
    corpus: str
    unigram_loss: float
    axes: tuple[str, ...]
    varied: dict[str, Any]
    label: str
    value: str
    tokens: int
    flops: float
    work: float
    memory: int

    @property
    def kind(self) -> tuple[str, float]:
        """Equal for cells that take equally long."""
        return (self.config.recipe.optimizer, self.work)

    @property
    def peers(self) -> str:
        """Equal for cells that differ in nothing but the swept value and the seed."""
        numbers = _numbers(self.config) | {"seed": None, "corpus": self.corpus}
        _remove(numbers, self.value)
        return _digest(numbers)


def expand(sweep: Sweep, compose: Compose) -> list[Cell]:
    """All configurations, the most work first; those that several grids name are one.

    Raises:
        UserError: a configuration that training would refuse, naming the file, the grid and the values; or nothing is
            swept.
    """
    from mup_lightning.studies.sweep.check import Checker

    keys = _varying(sweep.grids)
    checker = Checker()
    cells: dict[str, Cell] = {}
    for number, grid in enumerate(sweep.grids, start=1):
        for combination in product(*grid.vary.values()):
            settings = grid.set | dict(zip(grid.vary, combination, strict=True))
            try:
                config = compose(grid.configs, settings)
                _refuse_no_number(config, sweep.value)
                checked = checker.check(config, sweep.early_stop)
            except UserError as error:
                values = ", ".join(f"{key} {value}" for key, value in zip(grid.vary, combination, strict=True))
                raise UserError(f"{sweep.file}: grid {number}{f' at {values}' if values else ''}: {error}") from None
            config.run = RunConfig()
            name = config_hash(config, checked.corpus)
            axes = cells[name].axes if name in cells else ()
            cells[name] = Cell(
                config=config,
                hash=name,
                axes=tuple(dict.fromkeys((*axes, _axis(grid)))),
                varied={key: look_up(config, key) for key in keys},
                label=name,
                value=sweep.value,
                **asdict(checked),
            )
    if all(look_up(cell.config, sweep.value) <= 0 for cell in cells.values()):
        raise UserError(
            f"{sweep.file}: sweep.value is {sweep.value}, which is 0 or less in every configuration, so that there "
            f"would be nothing to compare; give it values above 0 under vary, or name another key"
        )
    return sorted(labelled(list(cells.values()), keys), key=lambda cell: (-cell.work, cell.hash))


def _varying(grids: tuple[Grid, ...]) -> list[str]:
    """Keys that grids vary, or set differently from one another."""
    keys = dict.fromkeys(key for grid in grids for key in grid.vary)
    fixed = dict.fromkeys(key for grid in grids for key in grid.set)
    keys |= {
        key: None for key in fixed if any(grid.set.get(key, grids) != grids[0].set.get(key, grids) for grid in grids)
    }
    return list(keys)


def labelled(cells: list[Cell], keys: list[str]) -> list[Cell]:
    """The cells with labels of what differs between them."""
    names = {key: f"{key.rpartition('.')[2]}=" for key in keys} | {"recipe.optimizer": "", "recipe.parametrization": ""}
    shown = ["recipe.optimizer", "recipe.parametrization", *keys]
    shown = [key for key in dict.fromkeys(shown) if len({str(look_up(cell.config, key)) for cell in cells}) > 1]
    result = []
    for cell in cells:
        # SP has no branch depth.
        own = [key for key in shown if key != "recipe.branch_depth" or cell.config.recipe.parametrization == "mup"]
        label = " ".join(f"{names[key]}{_short(look_up(cell.config, key))}" for key in own)
        result.append(replace(cell, label=label or cell.hash[:12]))
    return result


def _short(value: Any) -> str:
    """Fractions that are powers of two as such."""
    if isinstance(value, float) and 0 < value < 1 and math.frexp(value)[0] == 0.5:
        return f"2^{math.frexp(value)[1] - 1}"
    return str(value)


def shard(cells: list[Cell], number: int, of: int) -> list[Cell]:
    """Every `of`-th cell from the `number`-th on, counted from 1: as much work for each."""
    if not 1 <= number <= of:
        raise UserError(f"--shard is {number}/{of}; expected I/N with I from 1 to N, such as 1/4")
    return cells[number - 1 :: of]


def config_hash(config: Config, corpus: str) -> str:
    """sha256 hex of all that determines the numbers of a run: a resolved configuration and its corpus's contents."""
    return _digest(_numbers(config) | {"corpus": corpus})


def placed(config: Config, root: str, name: str) -> Config:
    """The configuration with a run folder; the corpus has been verified for the whole sweep already."""
    return replace(config, run=RunConfig(root=root, name=name), data=replace(config.data, verify=False))


def _numbers(config: Config) -> dict[str, Any]:
    """What must be equal to continue a run exactly, and what may then still change its length or its last digits."""
    trainer, data = config.trainer, config.data
    more: dict[str, Any] = {"max_steps": trainer.max_steps, "accelerator": trainer.accelerator}
    more |= {"micro_batch": data.micro_batch, "val_tokens": data.val_tokens}
    return config.identity() | {"run": more}


def _digest(plain: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _axis(grid: Grid) -> str:
    """What size is in a grid: what the file says, else what varies."""
    if grid.axis is not None:
        return AXES[grid.axis]
    return "depth" if len(grid.vary.get("model.depth", ())) > 1 else "width"


def look_up(config: Config, key: str) -> Any:
    """The value of a dotted key.

    Raises:
        UserError: there is none.
    """
    value: Any = config
    for part in key.split("."):
        inside = part in value if isinstance(value, dict) else hasattr(value, part)
        if not inside:
            near = get_close_matches(key, leaves(asdict(config)), n=1, cutoff=0.5)
            raise UserError(f"unknown option {key}; did you mean {near[0]}?" if near else f"unknown option {key}")
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    return value


def _refuse_no_number(config: Config, key: str) -> None:
    value = look_up(config, key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        shown = "a section" if is_dataclass(value) else repr(value)
        raise UserError(f"sweep.value is {key}, which is {shown}; expected a number's key, such as recipe.lr")


def _remove(plain: dict[str, Any], key: str) -> None:
    *sections, last = key.split(".")
    for section in sections:
        plain = plain[section]
    plain[last] = None
