"""`mup-lightning figure`: feature norms of trained runs, read from their TensorBoard logs, arranged, and drawn."""

import sys
from collections import defaultdict
from dataclasses import dataclass
from itertools import groupby
from math import inf
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader

from mup_lightning.config.identity import ADDED, identity
from mup_lightning.config.load import build_config
from mup_lightning.config.schema import Config, leaves
from mup_lightning.errors import UserError
from mup_lightning.studies import style
from mup_lightning.studies.scaling import Shape, title
from mup_lightning.typed import Picture, Typed

PREFIX = "features/"  # tags are features/<point>, and features/<point>/layer_<i> inside blocks; see callbacks/norms.py

Curve = list[tuple[int, float]]  # (step, value), in order of the steps

STEPS_SHOWN = 12  # most lines in a panel over depth

WHAT = {
    "attention": "attention branch",
    "attention_scaled": "attention branch × multiplier",
    "mlp": "MLP branch",
    "mlp_scaled": "MLP branch × multiplier",
    "residual": "residual stream",
    "final_norm": "final LayerNorm",
}
"""Points in words, where these are others than their names."""

OVERVIEW = ("attention_scaled", "mlp_scaled", "residual", "embedding", "final_norm", "logits")
"""What is drawn of one run. A branch without its multiplier has the same shape, so it would say nothing more."""


@dataclass
class FigureSettings(Typed, prefix="--"):
    """What is drawn: one run across depth at several steps, or several runs as one line per size over the steps.

    Attributes:
        runs: folders of finished or running runs, each with a config.yaml.
        point: what was measured: embedding, attention, attention_scaled, mlp, mlp_scaled, residual, final_norm or
            logits; null: an overview of one run, and residual, in the last block, of several.
        out: the picture, .png, .pdf or .svg; null: feature_norms.png, in the run's folder if there is one run.
    """

    runs: list[Path]
    point: str | None = None
    out: Picture | None = None


def run(settings: FigureSettings) -> int:
    """Draw feature norms, and say where the picture is."""
    alone = len(settings.runs) == 1
    out = settings.out or (settings.runs[0] if alone else Path()) / "feature_norms.png"
    point = settings.point if alone else settings.point or "residual"
    runs = [read_run(folder, point) for folder in settings.runs]
    if not out.parent.is_dir():
        raise UserError(f"--out is {out}, but there is no folder {out.parent}; make it first")
    if point is None or alone:
        print(f"wrote {style.save(run_figure(runs[0], point), out)}")
        return 0
    rows = compare(runs)
    for row in rows:
        for name, panel in row.panels().items():
            if found := spread([run.last(point) for run in panel]):
                sizes = f"{row.varying} {row.size(panel[0])} to {row.size(panel[-1])}{row.fixed}"
                what = f"at step {found[0]} the largest norm is {found[1]:.3g} times the smallest"
                print(f"{name}, {sizes}: {what}")
    if left_out := [run.name for run in runs if not any(run in row.runs for row in rows)]:
        names = ", ".join(left_out)
        print(f"note: not drawn, because no other run shares their width or depth: {names}", file=sys.stderr)
    if differing := other_differences(runs):
        print(f"note: the runs also differ in {', '.join(differing)}", file=sys.stderr)
    print(f"wrote {style.save(comparison_figure(rows, point), out)}")
    return 0


def read_scalars(folder: Path) -> dict[str, Curve]:
    """Every scalar by its tag, not thinned, without what a killed run wrote after a checkpoint. UserError: no files."""
    if not (files := sorted(folder.glob("*tfevents*"))):
        raise UserError(f"{folder} holds no TensorBoard event files; expected those that a run writes there")
    for file in files:
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
    """Read a run. Raises UserError where the folder is none, or has logged no feature norms, or not this point."""
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
        every, loggers = config.trainer.feature_norms_every, ", ".join(config.run.loggers) or "[]"
        trained = f"trainer.feature_norms_every {every} and run.loggers {loggers}; expected 1 or more, and tensorboard"
        raise UserError(f"{folder} has logged no feature norms (yet); it was trained with {trained}")
    if point is not None and point not in norms:
        raise UserError(f"{folder} has no point {point!r}; it has {', '.join(sorted(norms))}")
    return Run(folder.resolve().name, config, dict(norms))


@dataclass(frozen=True)
class Row:
    """Runs, from small to large, that differ in width, in depth, or in both; `fixed` is the other, as ", depth 4"."""

    varying: str
    fixed: str
    runs: list[Run]

    def size(self, run: Run) -> str:
        """What varies, of a run."""
        width, depth = run.shape
        return {"width": f"{width}", "depth": f"{depth}"}.get(self.varying, f"{width} × {depth}")

    def panels(self) -> dict[str, list[Run]]:
        """Parametrization (SP, then the recipe by k) -> its runs."""
        runs = sorted(self.runs, key=lambda run: run.parametrization)
        return {name: list(own) for name, own in groupby(runs, lambda run: run.parametrization)}


def compare(runs: list[Run]) -> list[Row]:
    """A row where the width varies and one where the depth varies, each at the size of the other with most such runs.

    Where there is none, width and depth vary together in one row. Raises UserError where all have one size.
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
        (fixed, _), most = min(sizes.items(), key=lambda own: (-len(own[1]), own[0]))
        if len(most) > 1:
            rows.append(Row(varying, f", {other} {fixed}", [run for run in runs if run.shape[1 - axis] == fixed]))
    return rows or [Row("width × depth", "", runs)]


def spread(curves: list[Curve]) -> tuple[int, float] | None:
    """The last step that all curves have, and the largest norm over the smallest there. None for a single one."""
    norms = [dict(curve) for curve in curves]
    if len(norms) < 2 or not (common := set.intersection(*map(set, norms))):
        return None
    least, *_, most = sorted(own[max(common)] for own in norms)
    return max(common), most / least if least > 0 else inf


def other_differences(runs: list[Run]) -> list[str]:
    """Keys other than size, parametrization and seed in which the runs differ, which a comparison should mention."""
    meant = "seed model.width model.depth model.heads recipe.parametrization recipe.branch_depth recipe.scale_clip"
    first, *others = found = [ADDED | leaves(identity(run.config)) for run in runs]
    keys = {key for one in found for key in one} - {*meant.split()}
    return sorted(key for key in keys if any(other.get(key) != first.get(key) for other in others))


def comparison_figure(rows: list[Row], point: str) -> Figure:
    """Norms over steps, one line per size: a row of panels per way of growing, a panel per parametrization."""
    names = sorted({name for row in rows for name in row.panels()})
    size = max(7.0, 1.2 + 3.9 * len(names)), 1.1 + 2.7 * len(rows)
    figure, grid = style.panels(len(rows), len(names), size, sharex=True, sharey=True)
    for row, axes in zip(rows, grid, strict=True):
        for name, ax in zip(names, axes, strict=True):
            _draw_sizes(ax, row, name, point)
        axes[-1].legend(title=row.varying, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    where = "the last block's output" if point == "residual" else WHAT.get(point, point)
    figure.supylabel(f"RMS norm of {where}", fontsize=11)
    figure.supxlabel("training step", fontsize=11)
    asked = "μP asks that the lines of all sizes lie on each other"
    figure.suptitle(f"Feature norms while training, one line per model size\n{asked}", fontsize=12)
    return figure


def _draw_sizes(ax: Axes, row: Row, name: str, point: str) -> None:
    sizes = list(dict.fromkeys(map(row.size, row.runs)))
    ax.tick_params(labelbottom=True, labelleft=True)
    looks: dict[str, dict[str, Any]] = {}
    for place, size in enumerate(sizes):
        large = place / max(1, len(sizes) - 1)
        # Small models are drawn first and broad, so that lines that coincide can all be seen.
        looks[size] = {"color": style.STEPS(large), "linewidth": 1.4 + 2.6 * (1 - large)}
        ax.plot([], [], label=size, **looks[size])
    if (runs := row.panels().get(name)) is None:
        ax.set_axis_off()  # the legend stays
        return
    for run in runs:
        ax.plot(*zip(*run.last(point), strict=True), **looks[row.size(run)])
    ax.set_title(f"{name}: {row.varying} grows{row.fixed}", fontsize=11)
    _style(ax)
    if found := spread([run.last(point) for run in runs]):
        words = f"step {found[0]}: largest norm {found[1]:.3g} × the smallest"
        ax.text(0.97, 0.04, words, transform=ax.transAxes, ha="right", va="bottom", fontsize=9.5)


def run_figure(run: Run, point: str | None = None) -> Figure:
    """One run's norms at a point, or an overview: across depth a line per step, outside of blocks over the steps."""
    points = [point] if point is not None else [name for name in OVERVIEW if name in run.norms]
    outside = [name for name in points if None in run.norms[name]]
    inside = [name for name in points if name not in outside]
    panels = len(inside) + bool(outside)
    columns, rows = min(2, panels), (panels + 1) // 2
    figure, grid = style.panels(rows, columns, (7.0 if columns == 1 else 9.0, 1.1 + 2.7 * rows))
    steps = shown_steps(run)
    for name, ax in zip(inside, grid.flat, strict=False):
        _draw_depth(ax, run, name, steps)
    if outside:
        _draw_outside(grid.flat[len(inside)], run, outside)
    for ax in grid.flat[panels:]:
        ax.set_visible(False)
    if inside:
        style.step_key(figure, list(grid.flat), steps[-1])
    what = f"{run.parametrization}, width {run.shape[0]}, depth {run.shape[1]}, {run.config.recipe.optimizer}"
    healthy = "healthy: a branch is about as large in every block, and nothing runs away while training"
    figure.suptitle(f"Feature norms of {run.name} ({what})\n{healthy}", fontsize=12)
    return figure


def shown_steps(run: Run) -> list[int]:
    """The steps that are shown across depth: evenly chosen from those logged, with the first and the last."""
    steps = sorted({step for layers in run.norms.values() for curve in layers.values() for step, _ in curve})
    places = [round(i * (len(steps) - 1) / (STEPS_SHOWN - 1)) for i in range(STEPS_SHOWN)]
    return [steps[place] for place in dict.fromkeys(places)]


def _draw_depth(ax: Axes, run: Run, point: str, steps: list[int]) -> None:
    layers = {layer + 1: dict(curve) for layer, curve in run.norms[point].items() if layer is not None}
    # What the first block is given, h_0, is the residual stream too.
    if point == "residual" and "embedding" in run.norms:
        layers[0] = dict(run.norms["embedding"][None])
    look: dict[str, Any] = {"linewidth": 1.6, "markersize": 3, "marker": "o" if len(layers) <= 16 else None}
    for step in steps:
        heights = [(block, curve[step]) for block, curve in sorted(layers.items()) if step in curve]
        ax.plot(*zip(*heights, strict=True), color=style.STEPS(step / max(1, steps[-1])), **look)
    ax.set_title(WHAT.get(point, point) + (" (0: embedding)" if 0 in layers else ""), fontsize=11)
    ax.set(xlabel="block", ylabel="RMS norm")
    _style(ax)


def _draw_outside(ax: Axes, run: Run, points: list[str]) -> None:
    for point, line in zip(points, ("-", "--", ":"), strict=False):
        x, y = zip(*run.norms[point][None], strict=True)
        ax.plot(x, y, line, color="black", linewidth=1.6, label=WHAT.get(point, point))
    ax.set_title("outside the blocks", fontsize=11)
    ax.set(xlabel="training step", ylabel="RMS norm")
    _style(ax)
    ax.set_ylim(top=4 * ax.get_ylim()[1])  # room above all lines (the axis is logarithmic)
    ax.legend(loc="upper center", ncols=3, frameon=False, fontsize=9, handlelength=1.6, columnspacing=0.9)


def _style(ax: Axes) -> None:
    style.log_values(ax)
    style.decorate(ax)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
