"""Feature norms of trained runs, read from their TensorBoard logs and arranged for comparison."""

import sys
from collections import defaultdict
from dataclasses import dataclass
from math import inf
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader

from mup_lightning.config.identity import identity
from mup_lightning.config.load import build_config
from mup_lightning.config.schema import Config, leaves
from mup_lightning.errors import UserError
from mup_lightning.studies.scaling import Shape, title

PREFIX = "features/"
"""Tags are features/<point>, and features/<point>/layer_<i> inside blocks; see callbacks/norms.py."""

Curve = list[tuple[int, float]]
"""(step, value) pairs in order of their steps, each step once."""


def read_scalars(folder: Path) -> dict[str, Curve]:
    """Every scalar of a finished or running run by its tag, without TensorBoard's thinning.

    What a killed run wrote after its last checkpoint is left out, as in TensorBoard; of a step that was written twice,
    the later value counts. Raises UserError where there is no event file.
    """
    if not any(folder.glob("*tfevents*")):
        raise UserError(f"{folder} holds no TensorBoard event files; expected those that a run writes there")
    for file in sorted(folder.glob("*tfevents*")):
        size, read = file.stat().st_size, sum(16 + len(record) for record in RawEventFileLoader(str(file)).Load())
        if read < size or not size:
            why = "damaged, or its run was killed there, or is writing"
            print(f"note: {file} cannot be read beyond byte {read:,} of {size:,}: {why}", file=sys.stderr)
    log = EventAccumulator(str(folder), size_guidance={SCALARS: 0}).Reload()
    return {tag: sorted({event.step: event.value for event in log.Scalars(tag)}.items()) for tag in log.Tags()[SCALARS]}


@dataclass(frozen=True)
class Run:
    """A run's feature norms: point -> layer (None outside blocks) -> RMS norm over steps."""

    name: str
    config: Config
    norms: dict[str, dict[int | None, Curve]]

    @property
    def shape(self) -> Shape:
        """(width, depth)."""
        return self.config.model.width, self.config.model.depth

    @property
    def parametrization(self) -> str:
        """As titles call it."""
        return title(self.config.recipe.parametrization, self.config.recipe.branch_depth)

    def last(self, point: str) -> Curve:
        """A point's norm in the last block, or outside blocks if it is there."""
        layers = self.norms[point]
        return layers[max(layers, key=lambda layer: -1 if layer is None else layer)]


def read_run(folder: Path, point: str | None = None) -> Run:
    """Read a run's configuration and its feature norms.

    Raises UserError where the folder is no run, or it has logged no feature norms, or not this point.
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
        loggers = ", ".join(config.run.loggers) or "[]"
        every = f"trainer.feature_norms_every {config.trainer.feature_norms_every} and run.loggers {loggers}; expected "
        every += "1 or more, and tensorboard"
        raise UserError(f"{folder} has logged no feature norms (yet); it was trained with {every}")
    if point is not None and point not in norms:
        raise UserError(f"{folder} has no point {point!r}; it has {', '.join(sorted(norms))}")
    return Run(folder.resolve().name, config, dict(norms))


@dataclass(frozen=True)
class Row:
    """Runs, from small to large, that differ in size in the same way.

    `varying` is "width", "depth", or "width × depth" where both vary together; `fixed` what does not, such as
    ", depth 4".
    """

    varying: str
    fixed: str
    runs: list[Run]

    def size(self, run: Run) -> str:
        """What varies, of a run."""
        width, depth = run.shape
        return {"width": f"{width}", "depth": f"{depth}"}.get(self.varying, f"{width} × {depth}")

    def panels(self) -> dict[str, list[Run]]:
        """Parametrization (SP, then the recipe by k) -> its runs."""
        names = sorted({run.parametrization for run in self.runs})
        return {name: [run for run in self.runs if run.parametrization == name] for name in names}


def compare(runs: list[Run]) -> list[Row]:
    """Arrange several runs: a row where the width varies and one where the depth varies, as far as there are such runs.

    A row takes the fixed depth (or width) at which one parametrization has the most sizes. Where none has two, width
    and depth vary together in one row. Raises UserError where all have one size.
    """
    runs = sorted(runs, key=lambda run: run.shape)
    if runs[0].shape == runs[-1].shape:
        same = "nothing varies: all runs have width {} and depth {}; expected runs of different".format(*runs[0].shape)
        raise UserError(f"{same} sizes, or one run alone to see its norms across depth")
    rows = []
    for axis, (varying, other) in enumerate((("width", "depth"), ("depth", "width"))):
        sizes: dict[tuple[int, str], set[int]] = defaultdict(set)
        for run in runs:
            sizes[run.shape[1 - axis], run.parametrization].add(run.shape[axis])
        fixed, _ = min(sizes, key=lambda key: (-len(sizes[key]), key))
        chosen = [run for run in runs if run.shape[1 - axis] == fixed]
        if max(map(len, sizes.values())) > 1:
            rows.append(Row(varying, f", {other} {fixed}", chosen))
    return rows or [Row("width × depth", "", runs)]


def spread(curves: list[Curve]) -> tuple[int, float] | None:
    """The last step that all curves have, and the largest norm over the smallest there. None for a single one."""
    common = set.intersection(*({step for step, _ in curve} for curve in curves))
    if len(curves) < 2 or not common:
        return None
    step = max(common)
    norms = [dict(curve)[step] for curve in curves]
    return step, max(norms) / min(norms) if min(norms) > 0 else inf


def other_differences(runs: list[Run]) -> list[str]:
    """Keys other than size, parametrization and seed in which the runs differ, which a comparison should mention."""
    meant = {"model.width", "model.depth", "model.heads", "seed"}
    meant |= {"recipe.parametrization", "recipe.branch_depth", "recipe.scale_clip"}
    flat = [leaves(identity(run.config)) for run in runs]
    return [key for key in flat[0] if key not in meant and any(other.get(key) != flat[0][key] for other in flat)]
