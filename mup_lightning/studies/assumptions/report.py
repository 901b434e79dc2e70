"""Judges each ratio by its exponent of depth and its smallest value, and shows the assumptions. Imports no torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mup_lightning import tables
from mup_lightning.studies import scaling, style
from mup_lightning.studies.assumptions import TIMES, AssumptionSettings, measured_at
from mup_lightning.studies.scaling import Finding, Label, Line, Result, Run, Verdict, lines

CLAIMS = {
    "weights": ("a step does not cancel its weight", "‖W+ΔW‖ / (‖W‖+‖ΔW‖)"),
    "features": ("a step does not cancel the features it changes", "‖h+Δh‖ / (‖h‖+‖Δh‖)"),
    "activation": ("the nonlinearity keeps the size of features", "‖φ(Wh)‖ / ‖Wh‖"),
    "alignment": ("the updates of single samples add up", "‖ΔW h(x_i)‖ / ‖(1/B) ΔW_(i) h(x_i)‖"),
}
"""Assumption -> its claim, and its ratio; all norms are RMS norms."""

NEAR_ONE = ("weights", "features")
"""Assumptions whose ratios should stay near 1; the others only have to be flat in depth."""

NO_CLAIM = {("activation", "value")}
"""Measured, but not judged: attention's averaging of V takes the place of a nonlinearity, but the theory, whose
branches are plain products, makes no claim about it."""

BROAD = ("only", "mean")  # positions that stand for all blocks

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


@dataclass(frozen=True, kw_only=True)
class Assumptions(Result):
    """Finished checks, base learning rates by network and optimizer; findings are of (network, optimizer, name)."""

    settings: AssumptionSettings
    base_lr: dict[str, dict[str, float]]

    def about(self, assumption: str, network: str | None = None) -> list[Finding]:
        """The findings about one assumption, for one network or all."""
        return [one for one in self.findings if one.of[2] == assumption and network in (None, one.of[0])]


def positions(values: Sequence[float]) -> dict[str, float]:
    """Position -> value, of a value for every block (or the only one)."""
    if len(values) == 1:
        return {"only": values[0]}
    middle = values[len(values) // 2]
    return {"first": values[0], "middle": middle, "last": values[-1], "mean": sum(values) / len(values)}


def conclude(runs: list[Run], assumption: str, settings: AssumptionSettings) -> Finding:
    """Judge one of `CLAIMS` by the runs of one network and one optimizer, of all depths and seeds."""

    def values(run: Run) -> dict[Label, float]:
        return {
            (matrix, time, position): value
            for matrix in run.measured[TIMES[0]][assumption]
            for time in TIMES
            for position, value in positions(run.measured[time][assumption][matrix]).items()
        }

    band = (-settings.tolerance, settings.tolerance)
    sizes = {run.shape: run.shape[1] for run in sorted(runs, key=lambda run: run.shape)}
    found = lines(runs, sizes, values, lambda label: None if (assumption, label[0]) in NO_CLAIM else band)
    judged = [line for line in found if line.verdict]
    # Single blocks are noisy: their lines can refute an assumption, but not leave it unclear.
    counted = [line for line in judged if line.label[2] in BROAD or line.verdict is Verdict.FAIL]
    verdict, sentence = scaling.conclude(counted, lambda line: f"{where(line)}: L^")
    below = [line for line in judged if assumption in NEAR_ONE and min(line.means) < settings.least]
    if below:
        verdict = Verdict.FAIL
        least = where(min(below, key=lambda line: min(line.means)))
        sentence = f"below {settings.least:g} in {len(below)} of {len(judged)} lines (lowest: {least}); {sentence}"
    low, high = extremes(judged)
    found = [replace(line, verdict=Verdict.FAIL) if line in below else line for line in found]
    return Finding((*runs[0].of, assumption), verdict, f"ratio between {low:.2f} and {high:.2f}; {sentence}", found)


def where(line: Line) -> str:
    """Matrix, time and position of a line in words."""
    matrix, time, position = line.label
    return f"{matrix}, {time}" + {"only": "", "mean": ", mean over blocks"}.get(position, f", {position} block")


def steepest(found: Sequence[Line]) -> Line:
    """The line with the largest exponent, of those that stand for all blocks."""
    broad = (line for line in found if line.label[2] in BROAD)
    return max(broad, key=lambda line: abs(line.fit.exponent) if line.fit else math.inf)


def extremes(found: Sequence[Line]) -> tuple[float, float]:
    """Smallest and largest ratio, averaged over the seeds."""
    return min(min(line.means) for line in found), max(max(line.means) for line in found)


def text(result: Assumptions) -> str:
    """Every assumption for the terminal, with its verdict for each network and optimizer."""
    settings = result.settings
    depths = ", ".join(map(str, settings.depths))
    at = ", ".join(f"{steps} ({time})" for time, steps in measured_at(settings.steps).items())
    parts = [f"ratios at depths {depths}, width {settings.width}, {settings.seeds} seeds, after steps {at}"]
    for assumption, (claim, formula) in CLAIMS.items():
        parts.append(f"{claim}: {formula}")
        for finding in result.about(assumption):
            network, optimizer, _ = finding.of
            parts[-1] += f"\n  {NETWORKS[network]}, {optimizer}\n    {finding.verdict}: {finding.sentence}"
    return "\n\n".join(parts)


def markdown(result: Assumptions) -> str:
    """A row for each assumption, network and optimizer; "pass" counts the lines over depth that pass."""
    head = "assumption, network, optimizer, verdict, ratio, size of the step, steepest exponent of L, pass"
    rows = [head.split(", ")]
    for finding in result.findings:
        network, optimizer, assumption = finding.of
        claim, formula = CLAIMS[assumption]
        judged = [line for line in finding.lines if line.verdict]
        low, high = extremes(judged)
        worst = steepest(judged)
        # The size of a step relative to what it changes, over everything that was measured.
        times = [ratios for run in result.runs if run.of == (network, optimizer) for ratios in run.measured.values()]
        steps = [size for ratios in times for sizes in ratios.get(f"{assumption}_step", {}).values() for size in sizes]
        passed = f"{sum(line.verdict is Verdict.PASS for line in judged)} of {len(judged)}"
        sizes = f"{min(steps):.3f} to {max(steps):.2f}" if steps else ""
        first = [f"{claim}: `{formula}`", NETWORKS[network], optimizer, str(finding.verdict)]
        rows.append([*first, f"{low:.2f} to {high:.2f}", sizes, f"{worst.number} ({where(worst)})", passed])
    return tables.markdown(rows)


def picture(result: Assumptions, assumption: str) -> Figure:
    """A row for each network, a column for each of its matrices: means over blocks, for each time and optimizer."""
    networks = result.settings.networks
    lines_of = {network: result.about(assumption, network)[0].lines for network in networks}
    columns = {network: list(dict.fromkeys(line.label[0] for line in found)) for network, found in lines_of.items()}
    most = max(map(len, columns.values()))
    size = max(9.0, 1.0 + 2.6 * most), 1.6 + 2.7 * len(networks)
    figure, grid = style.panels(len(networks), most, size, sharex=True, sharey="row")
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
    times = zip(style.SERIES, measured_at(result.settings.steps).items(), strict=False)
    handles = [Line2D([], [], color=color, label=f"{time} (step {steps})") for color, (time, steps) in times]
    handles += [Line2D([], [], color="0.3", label=name, **look) for name, look in _looks(result).items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False)
    of = {one: ", ".join(f"{own.of[1]} {own.verdict}" for own in result.about(assumption, one)) for one in networks}
    verdicts = [f"{NETWORKS[network]}: {own}" for network, own in of.items()]
    figure.suptitle(f"Assumption: {'.   '.join(CLAIMS[assumption])}\n{';  '.join(verdicts)}", fontsize=12)
    return figure


def _looks(result: Assumptions) -> dict[str, dict[str, Any]]:
    looks = zip(result.settings.optimizer, cycle("- -- : -.".split()), cycle("os^DvPX"), strict=False)
    return {name: {"linestyle": dashes, "marker": marker, "markersize": 4} for name, dashes, marker in looks}


def _draw(ax: Axes, result: Assumptions, network: str, assumption: str, matrix: str) -> None:
    settings = result.settings
    if assumption in NEAR_ONE:
        ax.axhline(settings.least, color="0.6", linewidth=0.9, linestyle=":")
    words = []
    for finding in result.about(assumption, network):
        broad = [line for line in finding.lines if line.label[0] == matrix and line.label[2] in BROAD]
        for color, line in zip(style.SERIES, broad, strict=False):
            style.points(ax, settings.depths, line.values, color, **_looks(result)[finding.of[1]])
        words.append((f"{finding.of[1]}: L^{steepest(broad).number}", "black"))
    ax.set_title(MATRICES[matrix] + (f"\n{NONLINEARITIES[matrix]}" if assumption == "activation" else ""), fontsize=11)
    style.write(ax, words, below=True)
    style.log_sizes(ax, settings.depths)
    style.decorate(ax)
