"""A probe as text, as a Markdown table and as a picture. Imports no torch."""

import textwrap
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mup_lightning import tables
from mup_lightning.spectral.roles import Role
from mup_lightning.spectral.tables import as_text
from mup_lightning.studies import style
from mup_lightning.studies.fit import Fit, Verdict
from mup_lightning.studies.probe.settings import AXES, WINDOWS
from mup_lightning.studies.probe.verdict import Probe, Proposal, declared, sentence

MARKS = {Verdict.PASS: "", Verdict.FAIL: " ✗", Verdict.UNCLEAR: " ?"}
"""What follows an exponent in the Markdown table."""

LOOKS = {"first": (style.SERIES[0], "s", 0.97), "later": (style.SERIES[2], "o", 1.03)}
"""Window -> colour, marker, and a shift to the side, so that both stay visible where they agree."""


def text(probe: Probe) -> str:
    """One probe for the terminal: exponents, what is declared, the verdict; a recipe where one is proposed."""
    head = ["role", "steps"]
    for symbol in AXES.values():
        head += [f"exponent of {symbol}", *(["declared", "verdict"] if probe.judgements else [])]
    lines = [head]
    for role in _roles(probe):
        for window in _windows(probe):
            line = [str(role), WINDOWS[window]]
            for axis in AXES:
                found = probe.fits[window, role, axis]
                line.append(tables.interval(found.exponent, found.low, found.high))
                if probe.judgements:
                    judged = probe.judgements[window, role, axis]
                    line += [str(declared(judged)), judged.verdict]
            lines.append(line)
    paragraphs = [f"‖A‖_R of {probe.optimizer}, exponents with 95 % intervals", tables.text(lines)]
    if probe.proposal:
        paragraphs.append(_proposal(probe, probe.proposal))
    if "first" not in _windows(probe):
        paragraphs.append("note: its first step changes nothing, so there is no exponent at step 1")
    return "\n\n".join([*paragraphs, sentence(probe)])


def markdown(probes: Sequence[Probe]) -> str:
    """Several probes as one Markdown table: measured exponents next to the declared ones; ✗ FAIL, ? UNCLEAR."""
    lines = [["optimizer", "role", "declared n, L", "n at step 1", "n later", "L at step 1", "L later"]]
    for probe in probes:
        title = f"**{probe.optimizer}**: {probe.verdict}"
        for role in _roles(probe):
            line = [title, str(role), ", ".join(_declared(probe, role, axis) for axis in AXES)]
            for axis in AXES:
                for window in WINDOWS:
                    found, judged = probe.fits.get((window, role, axis)), probe.judgements.get((window, role, axis))
                    mark = MARKS[judged.verdict] if judged else ""
                    line.append(_plus_minus(found) + mark if found else "–")
            lines.append(line)
            title = ""
    return tables.markdown(lines) + "\n"


def picture(probe: Probe) -> Figure:
    """A column per role, width above depth. Each curve is shown relative to its smallest network."""
    roles = _roles(probe)
    figure = Figure(figsize=(1.2 + 2.9 * len(roles), 6.6), layout="constrained")
    grid = figure.subplots(len(AXES), len(roles), squeeze=False, sharey="row")
    for row, axis in zip(grid, AXES, strict=True):
        for ax, role in zip(row, roles, strict=True):
            _draw(ax, probe, role, axis)
        row[0].set_ylabel(f"‖A‖_R, relative to {axis} {probe.settings.line(axis)[0][0]}")
        # Show at least a factor of 6, so that small noise looks small, and leave the upper part to the text.
        low, high = np.log(row[0].get_ylim())
        low, high = min(low, -0.9), max(high, 0.9)
        row[0].set_ylim(np.exp(low), np.exp(high + 0.4 * (high - low)))
    for ax, role in zip(grid[0], roles, strict=True):
        kind = "bias" if role.is_vector else "matrix"
        where = role.removesuffix("_bias")
        ax.set_title(f"{where} {kind}" if where != "hidden" else f"hidden {'biases' if role.is_vector else 'matrices'}")
    handles: dict[str, Artist] = {}
    for ax in grid.flat:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=len(handles), frameon=False)
    title = f"How the raw step A of {probe.optimizer} grows with the network (‖·‖_R: RMS operator norm)"
    figure.suptitle(f"{title}\n{textwrap.fill(sentence(probe), 34 * len(roles))}", fontsize=11)
    return figure


def _draw(ax: Axes, probe: Probe, role: Role, axis: str) -> None:
    sizes = np.array(probe.settings.line(axis)[0], dtype=float)
    ratios = sizes / sizes[0]
    texts = []
    for window in _windows(probe):
        color, marker, shift = LOOKS[window]
        fit, by_seed = probe.fits[window, role, axis], np.array(probe.points[window, role, axis])
        means = np.exp(np.log(by_seed).mean(0))
        # The fitted line goes through the middle of the points.
        unit = np.exp(np.mean(np.log(means) - fit.exponent * np.log(ratios)))
        ax.plot(sizes * shift, by_seed.T / unit, ".", color=color, alpha=0.3, markersize=5)
        label = f"measured, {WINDOWS[window]} (pale: single seeds)"
        ax.plot(sizes * shift, means / unit, marker, color=color, markersize=5, label=label)
        ax.plot(sizes, ratios**fit.exponent, "-", color=color, linewidth=1.4)
        texts.append((f"{WINDOWS[window]}: {_plus_minus(fit)}", color))
    if probe.judgements:
        slope = float(Fraction(_declared(probe, role, axis)))
        ax.plot(sizes, ratios**slope, "--", color="black", linewidth=1.6, label="declared slope")
        texts.append((f"declared: {tables.signed(slope)}", "black"))
    for line, (words, color) in enumerate(texts):
        ax.text(0.04, 0.96 - 0.085 * line, words, color=color, transform=ax.transAxes, fontsize=9.5, va="top")
    ax.set_xlabel(axis)
    style.log_sizes(ax, list(sizes))
    style.log_values(ax)
    style.decorate(ax)


def _roles(probe: Probe) -> list[Role]:
    return list(dict.fromkeys(role for _, role, _ in probe.fits))


def _windows(probe: Probe) -> list[str]:
    return [window for window in WINDOWS if any(window == of for of, _, _ in probe.fits)]


def _declared(probe: Probe, role: Role, axis: str) -> str:
    """The declared exponent as a fraction; a dash for an unknown optimizer."""
    judged = probe.judgements.get((_windows(probe)[-1], role, axis))
    return str(declared(judged)) if judged else "–"


def _plus_minus(found: Fit) -> str:
    return tables.plus_minus(found.exponent, found.half_width)


def _proposal(probe: Probe, proposal: Proposal) -> str:
    facts = probe.facts
    notes = [
        f"learning rate: {facts['learning_rate']['meaning']}",
        f"weight decay: {facts['weight_decay']['meaning']}",
        f"parameters given to it: {facts['grouping']}",
        *(f"warning: {warning}" for warning in proposal.warnings),
    ]
    return "\n".join(["Proposed recipe: " + as_text(proposal.family, probe.settings.branch_depth), "", *notes])
