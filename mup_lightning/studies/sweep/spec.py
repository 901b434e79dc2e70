"""What a sweep file says: grids of values over composed recipes. Light: the command line reads it before torch."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from mup_lightning.errors import UserError
from mup_lightning.files import read_yaml

AXES = {"model.width": "width", "model.depth": "depth", "both": "both"}
"""What `axis` can be -> the axis as the table names it."""

_SCIENTIFIC = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")

_SWEEP_KEYS = ("name", "configs", "set", "vary", "grids", "axis", "value", "early_stop", "keep_runs")
_GRID_KEYS = ("configs", "set", "vary", "axis")


@dataclass(frozen=True)
class Grid:
    """A cross product.

    Attributes:
        configs: recipe files, composed left to right.
        set: dotted key -> value, the same in all configurations.
        vary: dotted key -> values.
        axis: what "size" is: a key of `AXES`; None: what of width and depth varies in the grid, else width.
    """

    configs: tuple[str, ...]
    set: dict[str, Any]
    vary: dict[str, list[Any]]
    axis: str | None


@dataclass(frozen=True)
class EarlyStop:
    """When a run counts as hopeless.

    Attributes:
        after: the step after which it is judged, once, by its mean training loss of the tenth of these steps before.
        worse_than: nats by which this may exceed the lower of the unigram loss and the best loss that any run that
            differs only in the swept value and the seed had at the same step.
    """

    after: int
    worse_than: float


@dataclass(frozen=True)
class Sweep:
    """A sweep file.

    Attributes:
        file: where it was read.
        name: of the sweep; its default folder is called so.
        value: dotted key of what is swept, such as recipe.lr.
        grids: their union is what is run.
        early_stop: None: every run goes to its end.
        keep_runs: every run keeps its folder with TensorBoard logs and checkpoints.
    """

    file: str
    name: str
    value: str
    grids: tuple[Grid, ...]
    early_stop: EarlyStop | None = None
    keep_runs: bool = False
    overrides: dict[str, Any] = field(default_factory=dict)


def load(file: str | Path, overrides: dict[str, Any] | None = None) -> Sweep:
    """Read a sweep file.

    Args:
        file: YAML with one key, `sweep`.
        overrides: dotted key -> value; wins over what the file sets and over what it varies.

    Raises:
        UserError: it cannot be read, or a key is unknown, missing or of another kind than expected.
    """
    overrides = overrides or {}
    content = _read(file)
    _check_keys(content, ("sweep",), file, "")
    sweep = _mapping(content.get("sweep"), file, "sweep")
    _check_keys(sweep, _SWEEP_KEYS, file, "sweep.")
    grids = sweep.get("grids", [{}])
    if not isinstance(grids, list) or not grids:
        raise UserError(f"{file}: sweep.grids is {grids!r}; expected a list of grids, each with set, vary or both")
    value = sweep.get("value", "recipe.lr")
    if not isinstance(value, str):
        raise UserError(f"{file}: sweep.value is {value!r}; expected one dotted key, such as recipe.lr")
    return Sweep(
        file=str(file),
        name=_name(sweep.get("name", Path(file).stem), file),
        value=value,
        grids=tuple(
            _grid(grid, sweep, overrides, file, f"sweep.grids[{n}]" if "grids" in sweep else "sweep")
            for n, grid in enumerate(grids)
        ),
        early_stop=_early_stop(sweep.get("early_stop"), file),
        keep_runs=_flag(sweep.get("keep_runs", False), f"{file}: sweep.keep_runs"),
        overrides=overrides,
    )


def _read(file: str | Path) -> dict[str, Any]:
    return _mapping(read_yaml(Path(file), "a sweep file, see recipes/experiment/"), file, "the file")


def _grid(grid: Any, sweep: dict[str, Any], overrides: dict[str, Any], file: str | Path, where: str) -> Grid:
    """One grid; what stands beside `grids` holds for each of them, and the grid's own values win."""
    grid = _mapping(grid, file, where)
    _check_keys(grid, _GRID_KEYS, file, f"{where}.")
    fixed: dict[str, Any] = {}
    vary: dict[str, list[Any]] = {}
    for level, name in ((sweep, "sweep"), (grid, where)):
        to_set = _mapping(level.get("set", {}), file, f"{name}.set")
        to_vary = _mapping(level.get("vary", {}), file, f"{name}.vary")
        if both := [key for key in to_set if key in to_vary]:
            raise UserError(f"{file}: {name} has {both[0]} under set and under vary; expected it under one of them")
        for key, value in to_set.items():
            vary.pop(key, None)
            fixed[key] = _power(value, f"{file}: {name}.set.{key}")
        for key, values in to_vary.items():
            fixed.pop(key, None)
            vary[key] = _values(values, file, f"{name}.vary.{key}")
    configs: tuple[str, ...] = ()
    for level, name in ((sweep, "sweep"), (grid, where)):
        files = level.get("configs", [])
        if not isinstance(files, list) or not all(isinstance(f, str) for f in files):
            raise UserError(f"{file}: {name}.configs is {files!r}; expected a list of recipe files")
        configs += tuple(files)
    axis = grid.get("axis", sweep.get("axis"))
    if axis is not None and (not isinstance(axis, str) or axis not in AXES):
        raise UserError(f"{file}: axis is {axis!r}; expected one of {', '.join(AXES)}")
    if placed := [key for key in (*fixed, *vary, *overrides) if key.startswith("run.")]:
        raise UserError(
            f"{file}: {placed[0]} is set, but a sweep's runs have folders of their own; --out FOLDER says where, and "
            f"sweep.keep_runs: true keeps them"
        )
    vary = {key: values for key, values in vary.items() if key not in overrides}
    crossed = all(len(vary.get(key, ())) > 1 for key in ("model.width", "model.depth"))
    if crossed and axis in (None, "both"):
        raise UserError(
            f"{file}: {where} crosses several model.width with several model.depth, which is no line of sizes; add "
            f"`axis: model.width` for a line over width at every depth, or `axis: model.depth`; to grow both, `axis: "
            f"both` and a grid for every size, such as set: {{model.width: 128, model.depth: 4}}"
        )
    return Grid(configs, fixed | overrides, vary, axis)


def _values(values: Any, file: str | Path, where: str) -> list[Any]:
    values = _power(values, f"{file}: {where}")
    if not isinstance(values, list) or not values:
        raise UserError(f"{file}: {where} is {values!r}; expected a list of values, or log2: [-9, -8, ...]")
    return values


def scalar(value: Any) -> Any:
    """1e-3 as a number, which YAML 1.1 takes for text; anything else as it is."""
    return float(value) if isinstance(value, str) and _SCIENTIFIC.fullmatch(value) else value


def _name(value: Any, file: str | Path) -> str:
    """Of a folder in runs/sweeps."""
    if isinstance(value, dict | list) or str(value) in ("", ".", "..") or "/" in str(value):
        raise UserError(
            f"{file}: sweep.name is {value!r}; expected a folder's name, such as lr_width (--out: elsewhere)"
        )
    return str(value)


def _flag(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise UserError(f"{where} is {value!r}; expected true or false")
    return value


def _power(value: Any, where: str) -> Any:
    """`{log2: -7}` and `{log2: [-7, -6]}` in numbers; whole numbers stay whole. Anything else as it is."""
    if not isinstance(value, dict) or list(value) != ["log2"]:
        return value
    exponents = value["log2"]
    exponents = [scalar(x) for x in exponents] if isinstance(exponents, list) else scalar(exponents)
    for exponent in exponents if isinstance(exponents, list) else [exponents]:
        if isinstance(exponent, bool) or not isinstance(exponent, int | float) or not abs(exponent) < 1000:
            raise UserError(f"{where} has log2 {exponent!r}; expected a number, or a list of them: log2: [-9, -8, -7]")
    return [2**x for x in exponents] if isinstance(exponents, list) else 2**exponents


def _early_stop(value: Any, file: str | Path) -> EarlyStop | None:
    if value is None:
        return None
    value = _mapping(value, file, "sweep.early_stop")
    _check_keys(value, ("after", "worse_than"), file, "sweep.early_stop.")
    after, worse_than = value.get("after"), scalar(value.get("worse_than"))
    steps = isinstance(after, int) and not isinstance(after, bool) and after > 0
    nats = isinstance(worse_than, int | float) and not isinstance(worse_than, bool) and 0 <= worse_than < math.inf
    if not (steps and nats):
        raise UserError(
            f"{file}: sweep.early_stop is {value}; expected `after`, a number of steps, and `worse_than`, "
            f"nats per token"
        )
    return EarlyStop(after, float(worse_than))


def _mapping(value: Any, file: str | Path, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{file}: {where} is {value!r}; expected keys and values")
    return value


def _check_keys(value: dict[str, Any], known: tuple[str, ...], file: str | Path, prefix: str) -> None:
    for key in value:
        if key not in known:
            near = get_close_matches(str(key), known, n=1, cutoff=0.5)
            hint = f"did you mean {prefix}{near[0]}? " if near else ""
            raise UserError(f"{file}: unknown key {prefix}{key}; {hint}Known here: {', '.join(known)}")
