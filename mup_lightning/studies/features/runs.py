"""Feature norms of trained runs, read from their TensorBoard logs and arranged for comparison."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from math import inf
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

from mup_lightning.config.load import build_config
from mup_lightning.config.schema import Config, leaves
from mup_lightning.errors import UserError

PREFIX = "features/"
"""Tags are features/<point>, and features/<point>/layer_<i> inside blocks; see callbacks/feature_norms.py."""

Curve = list[tuple[int, float]]
"""(step, value) pairs in order of their steps, each step once."""


def read_scalars(folder: Path) -> dict[str, Curve]:
    """Every scalar of a finished or running run by its tag, without TensorBoard's thinning.

    What a killed run wrote after its last checkpoint is left out, as in TensorBoard; of a step that was written twice,
    the later value counts.

    Raises:
        UserError: the folder holds no event file.
    """
    if not any(folder.glob("*tfevents*")):
        raise UserError(f"{folder} holds no TensorBoard event files; expected those that a run writes there")
    log = EventAccumulator(str(folder), size_guidance={SCALARS: 0}).Reload()
    return {tag: sorted({event.step: event.value for event in log.Scalars(tag)}.items()) for tag in log.Tags()[SCALARS]}


@dataclass(frozen=True)
class Run:
    """A run's feature norms.

    Attributes:
        name: its folder's name.
        config: its configuration.
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
        """A point's norm in the last block, or outside blocks if it is there."""
        layers = self.norms[point]
        return layers[max(layers, key=lambda layer: -1 if layer is None else layer)]


def read_run(folder: Path, point: str | None = None) -> Run:
    """Read a run's configuration and its feature norms.

    Args:
        folder: the run's folder.
        point: a point that it must have; None: any.

    Raises:
        UserError: the folder is no run, its files cannot be read, or it has logged no feature norms, or not this point.
    """
    file = folder / "config.yaml"
    if not file.is_file():
        inside = ", ".join(sorted(path.parent.name for path in folder.glob("*/config.yaml")))
        hint = f"it holds the runs {inside}: name those" if inside else "expected a folder such as runs/nano-muon_kimi"
        raise UserError(f"{folder} is not a run, there is no {file}; {hint}")
    config = build_config([file])
    norms: dict[str, dict[int | None, Curve]] = defaultdict(dict)
    for tag, curve in read_scalars(folder / "tensorboard").items():
        if tag.startswith(PREFIX):
            name, _, layer = tag.removeprefix(PREFIX).partition("/layer_")
            norms[name][int(layer) if layer else None] = curve
    if not norms:
        raise UserError(
            f"{folder} has logged no feature norms (yet); it was trained with trainer.feature_norms_every "
            f"{config.trainer.feature_norms_every}; expected 1 or more"
        )
    if point is not None and point not in norms:
        raise UserError(f"{folder} has no point {point!r}; it has {', '.join(sorted(norms))}")
    return Run(folder.resolve().name, config, dict(norms))


@dataclass(frozen=True)
class Row:
    """Panels side by side whose runs differ in size in the same way.

    Attributes:
        varying: "width", "depth", or "width × depth" where both vary together.
        fixed: what does not, such as "depth 4"; empty where both vary.
        runs: from small to large.
        panels: parametrization -> (size, norm over steps) of its runs, from small to large.
    """

    varying: str
    fixed: str
    runs: list[Run]
    panels: dict[str, list[tuple[str, Curve]]]

    @property
    def sizes(self) -> list[str]:
        """Each size once, from small to large."""
        return list(dict.fromkeys(_size(run, self.varying) for run in self.runs))


def spread(lines: list[tuple[str, Curve]]) -> tuple[int, float] | None:
    """The last step that all lines have, and the largest norm over the smallest there. None for a single line."""
    common = set.intersection(*({step for step, _ in curve} for _, curve in lines))
    if len(lines) < 2 or not common:
        return None
    step = max(common)
    norms = [dict(curve)[step] for _, curve in lines]
    return step, max(norms) / min(norms) if min(norms) > 0 else inf


def compare(runs: list[Run], point: str) -> list[Row]:
    """Arrange several runs: a row where the width varies and one where the depth varies, as far as there are such runs.

    A row takes the fixed depth (or width) at which one parametrization has the most sizes. Where none has two, width
    and depth vary together in one row.

    Args:
        runs: any number, in any order; all have the point.
        point: measured in the last block.

    Raises:
        UserError: all runs have the same size.
    """
    runs = sorted(runs, key=lambda run: run.shape)
    if runs[0].shape == runs[-1].shape:
        width, depth = runs[0].shape
        raise UserError(
            f"nothing varies: all runs have width {width} and depth {depth}; expected runs of different sizes, "
            f"or one run alone to see its norms across depth"
        )
    rows = []
    for varying, axis in (("width", 0), ("depth", 1)):
        # What is fixed -> the most sizes that one parametrization has there.
        sizes: dict[int, int] = defaultdict(int)
        shapes = {(run.parametrization, run.shape) for run in runs}
        for (_, fixed), number in Counter((kind, shape[1 - axis]) for kind, shape in shapes).items():
            sizes[fixed] = max(sizes[fixed], number)
        fixed = min(sizes, key=lambda value: (-sizes[value], value))
        if sizes[fixed] > 1:
            chosen = [run for run in runs if run.shape[1 - axis] == fixed]
            rows.append(_row(varying, f"{('depth', 'width')[axis]} {fixed}", chosen, point))
    return rows or [_row("width × depth", "", runs, point)]


def in_order(parametrizations: Iterable[str]) -> list[str]:
    """SP, then the recipe by k."""
    return sorted(parametrizations, key=lambda name: (name != "SP", name))


def other_differences(runs: list[Run]) -> list[str]:
    """Keys other than size, parametrization and seed in which the runs differ, which a comparison should mention."""
    meant = {"model.width", "model.depth", "model.heads", "recipe.parametrization", "recipe.branch_depth", "seed"}
    flat = [leaves(run.config.identity()) for run in runs]
    return [key for key in flat[0] if key not in meant and any(other.get(key) != flat[0][key] for other in flat)]


def _row(varying: str, fixed: str, runs: list[Run], point: str) -> Row:
    lines: dict[str, list[tuple[str, Curve]]] = defaultdict(list)
    for run in runs:
        lines[run.parametrization].append((_size(run, varying), run.last(point)))
    return Row(varying, fixed, runs, {name: lines[name] for name in in_order(lines)})


def _size(run: Run, varying: str) -> str:
    width, depth = run.shape
    return {"width": f"{width}", "depth": f"{depth}"}.get(varying, f"{width} × {depth}")
