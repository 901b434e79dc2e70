"""The assumption checks as text, as a Markdown table, and as a figure for each assumption. Imports no torch."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mup_lightning import tables
from mup_lightning.studies import style
from mup_lightning.studies.assumptions.settings import AssumptionSettings
from mup_lightning.studies.assumptions.verdict import FORMULAS, NEAR_ONE, Finding, Run, extremes, steepest

CLAIMS = {
    "weights": "a step does not cancel its weight",
    "features": "a step does not cancel the features it changes",
    "activation": "the nonlinearity keeps the size of features",
    "alignment": "the updates of single samples add up",
}
"""Assumption -> its claim."""

NETWORKS = {"mlp": "residual MLP", "gpt2": "GPT-2"}

MATRICES = {
    "input": "input matrix",
    "first": "first branch matrix",
    "second": "second branch matrix",
    "token": "token embedding",
    "value": "attention: V",
    "out": "attention: output",
    "up": "MLP: up",
    "down": "MLP: down",
    "stream": "residual stream",
}

NONLINEARITIES = {"first": "ReLU", "value": "attention's averaging (not judged)", "up": "GELU"}

LINES: tuple[tuple[Any, str], ...] = (
    ("-", "o"),
    ("--", "s"),
    (":", "^"),
    ("-.", "D"),
    ("-", "v"),
    ("--", "P"),
    (":", "X"),
)
"""Line and marker of each optimizer in turn."""


@dataclass(frozen=True)
class AssumptionResult:
    """Finished checks: their options, base learning rates by network and optimizer, conclusions and measurements."""

    settings: AssumptionSettings
    base_lr: dict[str, dict[str, float]]
    findings: list[Finding]
    versions: dict[str, str | None]
    runs: list[Run]

    def of(self, assumption: str, network: str | None = None) -> Iterator[Finding]:
        """The conclusions about one assumption, for one network or all."""
        for finding in self.findings:
            if finding.assumption == assumption and network in (None, finding.network):
                yield finding


def text(result: AssumptionResult) -> str:
    """Every assumption for the terminal, with its verdict for each network and optimizer."""
    settings = result.settings
    depths = ", ".join(map(str, settings.depths))
    at = ", ".join(f"{steps} ({time})" for time, steps in settings.measured_at.items())
    parts = [f"ratios at depths {depths}, width {settings.width}, {settings.seeds} seeds, after steps {at}"]
    for assumption, formula in FORMULAS.items():
        lines = [f"{CLAIMS[assumption]}: {formula}"]
        for finding in result.of(assumption):
            lines += [f"  {NETWORKS[finding.network]}, {finding.optimizer}", f"    {finding.sentence}"]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def markdown(result: AssumptionResult) -> str:
    """A row for each assumption, network and optimizer; "pass" counts the lines over depth that pass."""
    head = "assumption, network, optimizer, verdict, ratio, size of the step, steepest exponent of L, pass"
    rows = [head.split(", ")]
    for assumption, formula in FORMULAS.items():
        for finding in result.of(assumption):
            low, high = extremes(finding.judged)
            worst = steepest(finding.judged)
            rows.append(
                [
                    f"{CLAIMS[assumption]}: `{formula}`",
                    NETWORKS[finding.network],
                    finding.optimizer,
                    finding.verdict,
                    f"{low:.2f} to {high:.2f}",
                    _step(result, finding),
                    f"{worst.exponent} ({worst.where})",
                    f"{sum(line.verdict == 'PASS' for line in finding.judged)} of {len(finding.judged)}",
                ]
            )
    return tables.markdown(rows)


def _step(result: AssumptionResult, finding: Finding) -> str:
    """Range of the size of a step relative to what it changes, over everything that was measured."""
    sizes = [
        size
        for run in result.runs
        if (run.network, run.optimizer) == (finding.network, finding.optimizer)
        for ratios in run.times.values()
        for blocks in ratios.get(f"{finding.assumption}_step", {}).values()
        for size in blocks
    ]
    return f"{min(sizes):.3f} to {max(sizes):.2f}" if sizes else ""


def draw(result: AssumptionResult, folder: Path) -> list[Path]:
    """Draw assumptions_NAME.png for each assumption, and return the files."""
    return [style.save(picture(result, name), folder / f"assumptions_{name}.png") for name in FORMULAS]


def picture(result: AssumptionResult, assumption: str) -> Figure:
    """A row for each network, a column for each of its matrices; the mean over blocks, and the range of the seeds."""
    networks = result.settings.networks
    columns = {
        network: list(dict.fromkeys(line.matrix for line in next(result.of(assumption, network)).lines))
        for network in networks
    }
    most = max(map(len, columns.values()))
    figure = Figure(figsize=(max(9.0, 1.0 + 2.6 * most), 1.6 + 2.7 * len(networks)), layout="constrained")
    grid = figure.subplots(len(networks), most, squeeze=False, sharex=True, sharey="row")
    for axes, network in zip(grid, networks, strict=True):
        for ax, matrix in zip(axes, columns[network], strict=False):
            _draw(ax, result, network, assumption, matrix)
        for ax in axes[len(columns[network]) :]:
            ax.set_visible(False)
        axes[0].set_ylabel(f"{NETWORKS[network]}\nratio", fontsize=11)
        axes[0].set_ylim(0, 1.05 if assumption in NEAR_ONE else 1.08 * axes[0].get_ylim()[1])  # what looks flat is flat
    for column in grid.T:
        last = next(ax for ax in reversed(column) if ax.get_visible())
        last.tick_params(labelbottom=True)
        last.set_xlabel("depth L")
    figure.legend(handles=_legend(result), loc="outside lower center", ncols=5, frameon=False)
    verdicts = [
        f"{NETWORKS[network]}: {', '.join(f'{one.optimizer} {one.verdict}' for one in result.of(assumption, network))}"
        for network in networks
    ]
    head = f"Assumption: {CLAIMS[assumption]}.   {FORMULAS[assumption]}"
    figure.suptitle(f"{head}\n{';  '.join(verdicts)}", fontsize=12)
    return figure


def _draw(ax: Axes, result: AssumptionResult, network: str, assumption: str, matrix: str) -> None:
    settings = result.settings
    if assumption in NEAR_ONE:
        ax.axhline(settings.least, color="0.6", linewidth=0.9, linestyle=":")
    for (dashes, marker), optimizer in zip(LINES * 2, settings.optimizer, strict=False):
        for color, time in zip(style.SERIES, settings.measured_at, strict=False):
            values = np.array(by_depth(result, network, optimizer, assumption, matrix, time))
            ax.fill_between(settings.depths, values.min(1), values.max(1), color=color, alpha=0.15, linewidth=0)
            ax.plot(settings.depths, values.mean(1), linestyle=dashes, marker=marker, markersize=4, color=color)
    ax.set_title(MATRICES[matrix] + (f"\n{NONLINEARITIES[matrix]}" if assumption == "activation" else ""), fontsize=11)
    worst = [
        f"{finding.optimizer}: exponent {steepest([line for line in finding.lines if line.matrix == matrix]).exponent}"
        for finding in result.of(assumption, network)
    ]
    ax.text(0.04, 0.04, "\n".join(worst), transform=ax.transAxes, fontsize=9, va="bottom")
    style.log_sizes(ax, settings.depths)
    style.decorate(ax)


def by_depth(
    result: AssumptionResult, network: str, optimizer: str, assumption: str, matrix: str, time: str
) -> list[list[float]]:
    """For every depth, the ratio of every seed, averaged over the blocks."""
    found: dict[int, list[float]] = {depth: [] for depth in result.settings.depths}
    for run in result.runs:
        if (run.network, run.optimizer) == (network, optimizer):
            found[run.depth].append(float(np.mean(run.times[time][assumption][matrix])))
    return list(found.values())


def _legend(result: AssumptionResult) -> list[Line2D]:
    at = result.settings.measured_at
    times = [
        Line2D([], [], color=color, label=f"{time} (step {steps})")
        for color, (time, steps) in zip(style.SERIES, at.items(), strict=False)
    ]
    optimizers = [
        Line2D([], [], color="0.3", linestyle=dashes, marker=marker, markersize=4, label=optimizer)
        for (dashes, marker), optimizer in zip(LINES * 2, result.settings.optimizer, strict=False)
    ]
    return times + optimizers
