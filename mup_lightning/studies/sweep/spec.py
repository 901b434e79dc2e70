"""What a sweep file says: grids of values over composed recipe files. Imports no torch."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml

from mup_lightning.errors import UserError, located
from mup_lightning.files import read_yaml
from mup_lightning.typed import Bound, NonNegativeInt, Shard, Typed, build, convert

_Exponents = list[Annotated[float, Bound("exponents between -1000 and 1000", lambda value: abs(value) < 1000)]]
_Values = Annotated[list[Any], Bound("a list of values, or log2: [-9, -8, -7]", lambda value: len(value) > 0)]
_LENGTHS = {"tokens", "trainer.max_steps"}  # keys that say how long a run is

_FolderName = Annotated[
    str, Bound("a folder's name, such as lr_width", lambda text: "/" not in text and text not in (".", ".."))
]


@dataclass(frozen=True)
class Grid(Typed, prefix="sweep.grids."):
    """A cross product over recipe files, applied left to right.

    {log2: -7} is a power of two, and {log2: [-9, -8, -7]} are several. The key `tokens` stands for the
    trainer.max_steps in which a run sees so many tokens.
    """

    configs: tuple[Path, ...] = ()
    set: dict[str, Any] = field(default_factory=dict)  # dotted key -> the value in all of its trials
    vary: dict[str, Any] = field(default_factory=dict)  # dotted key -> values
    # The key of the size, both (width and depth), tokens (of a run) or batch (tokens in a step; all runs see as many,
    # `tokens`); None: the depth where that alone varies, else the width.
    axis: Literal["model.width", "model.depth", "both", "tokens", "batch"] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, value in self.set.items():
            self.set[key] = _powers(value, key)
        for key, values in self.vary.items():
            self.vary[key] = convert(_powers(values, key), _Values, f"vary.{key}")
        if both := sorted(self.set.keys() & self.vary.keys()):
            raise UserError(f"{both[0]} is both under set and under vary; expected it under one of them")
        if self.set.keys() | self.vary.keys() >= _LENGTHS:
            raise UserError("tokens and trainer.max_steps both say how long a run is; expected one of them")

    @property
    def size(self) -> str:
        """What grows, as tables name it: width, depth, both, tokens or batch."""
        alone = len(self.vary.get("model.depth", ())) > 1
        return (self.axis or ("model.depth" if alone else "model.width")).removeprefix("model.")


@dataclass(frozen=True)
class Sweep(Grid, prefix="sweep."):
    """A sweep file. What stands outside `grids`, see `Grid`, holds for all of them; a grid's own values win."""

    name: _FolderName = ""  # of the sweep and its default folder; empty: the file's name
    value: str = "recipe.lr"  # the dotted key that is swept
    grids: Annotated[tuple[Grid, ...], Bound("a list of grids", lambda value: len(value) > 0)] = (Grid(),)
    # Whether runs keep their folders: on, logs (without checkpoints), off.
    keep_runs: Literal["off", "logs", "on"] = "off"
    for_tune: bool = False  # everything it does not name is a target's: only `mup-lightning tune` can run it
    file: str = ""  # where it was read; set by `load`

    @property
    def folder(self) -> Path:
        """Where results are unless another folder is named."""
        return Path("runs") / "sweeps" / self.name


@dataclass
class SweepSettings(Typed, prefix="--"):
    """Each configuration is run once, several at a time. After a stop, the same command continues and repeats none.

    Attributes:
        file: grids of values, see recipes/experiment/.
        out: folder of the results; null: runs/sweeps/NAME.
        workers: processes; null: one for each core or GPU, as memory allows; 0: run in this process.
        set: KEY=VALUE, a fixed value that wins over the file; may be repeated.
        shard: I/N: run only every N-th configuration, from the I-th on.
        dry_run: list the configurations and what they cost, and run none.
    """

    file: Path
    out: Path | None = None
    workers: NonNegativeInt | None = None
    set: list[str] = field(default_factory=list)
    shard: Shard = "1/1"
    dry_run: bool = False


def load(file: str | Path, overrides: Sequence[str] = (), *, tuning: bool = False) -> Sweep:
    """Read a sweep file (YAML with one key, `sweep`), and complete each of its grids by what stands outside of them.

    Overrides, KEY=VALUE, win over the file; `tuning`: there is a target. Raises UserError where it cannot be used.
    """
    fixed = dict(_setting(text) for text in overrides)
    content = read_yaml(Path(file), "a sweep file, see recipes/experiment/")
    with located(file):
        if not isinstance(content, dict) or list(content) != ["sweep"]:
            raise UserError(f"expected the one key `sweep`, found {content!r:.60}")
        sweep = build(Sweep, content["sweep"], "sweep.")
        if sweep.for_tune and not tuning:
            raise UserError(f"takes what it does not name from a target; run it by mup-lightning tune sweep={file}")
        grids = tuple(_completed(grid, sweep, fixed) for grid in sweep.grids)
    return replace(sweep, grids=grids, name=sweep.name or Path(file).stem, file=str(file))


def _completed(grid: Grid, shared: Sweep, overrides: dict[str, Any]) -> Grid:
    """A grid with what stands outside of it, and with overrides."""
    fixed = {key: value for key, value in shared.set.items() if key not in grid.vary} | grid.set | overrides
    vary = {key: values for key, values in (shared.vary | grid.vary).items() if key not in {**grid.set, **overrides}}
    if placed := [key for key in (*fixed, *vary) if key.startswith("run.")]:
        raise UserError(f"{placed[0]} is set, but the runs of a sweep have folders of their own (--out, keep_runs)")
    axis = grid.axis or shared.axis
    layers = (overrides, grid.set | grid.vary, shared.set | shared.vary)
    lengths = [key for layer in layers for key in _LENGTHS & layer.keys()]
    for key in _LENGTHS - set(lengths[:1]):  # what stands nearest to the run wins
        fixed.pop(key, None)
        vary.pop(key, None)
    if axis == "batch" and lengths[:1] != ["tokens"]:
        raise UserError("a grid of axis batch needs `tokens` under set: the tokens of every run, whatever its batch")
    if axis in (None, "both") and all(len(vary.get(key, ())) > 1 for key in ("model.width", "model.depth")):
        add = "add `axis: model.width` or `axis: model.depth`; to grow both: `axis: both`, and a grid for every size"
        raise UserError(f"a grid crosses several model.width with several model.depth; {add}")
    return Grid(shared.configs + grid.configs, fixed, vary, axis)


def _powers(value: Any, key: str) -> Any:
    """`{log2: -7}` and `{log2: [-7, -6]}` as numbers, whole ones as integers; anything else as it is."""
    if not isinstance(value, dict) or list(value) != ["log2"]:
        return value
    several = isinstance(value["log2"], list)
    exponents = convert(value["log2"] if several else [value["log2"]], _Exponents, f"log2 of {key}")
    powers = [2 ** (int(x) if x.is_integer() else x) for x in exponents]
    return powers if several else powers[0]


def _setting(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    with suppress(yaml.YAMLError):
        if key and equals:
            return key, yaml.safe_load(value)
    raise UserError(f"--set is {text!r}; expected KEY=VALUE with a YAML value, such as trainer.max_steps=200")
