"""Feature norms of runs, arranged for drawing: over depth for one run, over sizes for several."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from math import inf
from pathlib import Path

import yaml

from mup_lightning.config.schema import Config, leaves
from mup_lightning.errors import UserError
from mup_lightning.studies.features.tensorboard_logs import Curve, read_scalars

PREFIX = "features/"
"""Tags are features/<point>, and features/<point>/layer_<i> inside blocks; see callbacks/feature_norms.py."""


@dataclass(frozen=True)
class Run:
    """One run, as far as its feature norms are concerned.

    Attributes:
        name: of its folder.
        config: as it was trained.
        norms: point -> layer (None outside blocks) -> RMS norm over steps.
    """

    name: str
    config: Config
    norms: dict[str, dict[int | None, Curve]]

    @property
    def shape(self) -> tuple[int, int]:
        """(width, depth)."""
        return self.config.model.width, self.config.model.depth

    @property
    def parametrization(self) -> str:
        """As titles call it. All k >= 2 agree."""
        if self.config.recipe.parametrization == "sp":
            return "SP"
        return "recipe, k = 1" if self.config.recipe.branch_depth == 1 else "recipe, k ≥ 2"

    def last(self, point: str) -> Curve:
        """A point's norm in the last block, or outside blocks where it is there."""
        layers = self.norms[point]
        return layers[max(layers, key=lambda layer: -1 if layer is None else layer)]


@dataclass(frozen=True)
class Panel:
    """The runs of one parametrization, small to large.

    Attributes:
        parametrization: see `Run`.
        lines: (size, norm over steps); runs of equal size stand beside each other.
    """

    parametrization: str
    lines: list[tuple[str, Curve]]

    def spread(self) -> tuple[int, float] | None:
        """The last step that all lines have, and the largest norm over the smallest there. None for a single line."""
        common = set.intersection(*({step for step, _ in curve} for _, curve in self.lines))
        if len(self.lines) < 2 or not common:
            return None
        step = max(common)
        norms = [dict(curve)[step] for _, curve in self.lines]
        return step, max(norms) / min(norms) if min(norms) > 0 else inf


@dataclass(frozen=True)
class Row:
    """Panels side by side whose runs differ in size in the same way.

    Attributes:
        varying: "width", "depth", or "width × depth" where both vary together.
        fixed: what does not, e.g. "depth 4"; empty where both vary.
        runs: of the row, small to large.
        sizes: theirs, each once.
        panels: one for each parametrization that there is.
    """

    varying: str
    fixed: str
    runs: list[Run]
    sizes: list[str]
    panels: list[Panel]


def read_run(folder: Path) -> Run:
    """Read a run's configuration and its feature norms.

    Raises:
        UserError: the folder is no run, its files cannot be read, or no feature norms were logged.
    """
    file = folder / "config.yaml"
    if not file.is_file():
        inside = sorted(path.parent.name for path in folder.glob("*/config.yaml"))
        hint = f"; it holds the runs {', '.join(inside)}: name those" if inside else ""
        raise UserError(
            f"{folder} is no run: there is no {file}{hint or '; expected a folder such as runs/nano-muon_kimi-mup'}"
        )
    try:
        values = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is damaged: {error}") from error
    try:
        config = Config.from_plain(values)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error

    norms: dict[str, dict[int | None, Curve]] = defaultdict(dict)
    for tag, curve in read_scalars(folder / "tensorboard").items():
        if tag.startswith(PREFIX):
            point, _, layer = tag.removeprefix(PREFIX).partition("/layer_")
            norms[point][int(layer) if layer else None] = curve
    if not norms:
        raise UserError(
            f"{folder} has logged no feature norms (yet); it was trained with trainer.feature_norms_every "
            f"{config.trainer.feature_norms_every}; expected 1 or more"
        )
    return Run(folder.resolve().name, config, dict(norms))


def check_point(runs: list[Run], point: str) -> None:
    """Raise UserError, with the list of known points, unless all runs have logged this one."""
    for run in runs:
        if point not in run.norms:
            raise UserError(f"{run.name} has no point {point!r}; it has {', '.join(sorted(run.norms))}")


def compare(runs: list[Run], point: str) -> list[Row]:
    """Arrange several runs: a row where the width varies and one where the depth varies, as far as there are such runs.

    A row takes the fixed depth (or width) at which one parametrization has the most sizes. Where none has two, width
    and depth vary together in one row.

    Args:
        runs: any number, in any order.
        point: measured in the last block.

    Raises:
        UserError: a run lacks the point, or all runs have the same size.
    """
    check_point(runs, point)
    shapes = {run.shape for run in runs}
    if len(shapes) == 1:
        width, depth = shapes.pop()
        raise UserError(
            f"nothing varies: all runs have width {width} and depth {depth}; expected runs of different sizes, "
            f"or one run alone to see its norms across depth"
        )
    rows: list[Row] = []
    for varying, axis in (("width", 0), ("depth", 1)):
        # What is fixed -> the most sizes that one parametrization has there.
        sizes: dict[int, int] = defaultdict(int)
        for kind in {run.parametrization for run in runs}:
            of_kind = {run.shape for run in runs if run.parametrization == kind}
            for fixed, number in Counter(shape[1 - axis] for shape in of_kind).items():
                sizes[fixed] = max(sizes[fixed], number)
        fixed = min(sizes, key=lambda value: (-sizes[value], value))
        if sizes[fixed] > 1:
            chosen = [run for run in runs if run.shape[1 - axis] == fixed]
            rows.append(_row(varying, f"{('depth', 'width')[axis]} {fixed}", chosen, point))
    return rows or [_row("width × depth", "", runs, point)]


def _row(varying: str, fixed: str, runs: list[Run], point: str) -> Row:
    def size(run: Run) -> str:
        width, depth = run.shape
        return {"width": f"{width}", "depth": f"{depth}"}.get(varying, f"{width} × {depth}")

    runs = sorted(runs, key=lambda run: run.shape)
    lines: dict[str, list[tuple[str, Curve]]] = defaultdict(list)
    for run in runs:
        lines[run.parametrization].append((size(run), run.last(point)))
    return Row(
        varying,
        fixed,
        runs,
        list(dict.fromkeys(map(size, runs))),
        [Panel(name, lines[name]) for name in in_order(lines)],
    )


def in_order(parametrizations: Iterable[str]) -> list[str]:
    """SP, then the recipe by k."""
    return sorted(parametrizations, key=lambda name: (name != "SP", name))


def other_differences(runs: list[Run]) -> list[str]:
    """Keys besides size, parametrization and seed that differ between the runs: a comparison should know of them."""
    meant = {"model.width", "model.depth", "model.heads", "recipe.parametrization", "recipe.branch_depth", "seed"}
    flat = [leaves(run.config.identity()) for run in runs]
    return [key for key in flat[0] if key not in meant and any(other[key] != flat[0][key] for other in flat)]
