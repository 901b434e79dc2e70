"""Holds exponents against a declared family, or proposes a recipe, and shows a probe. Imports no torch."""

import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mup_lightning import tables
from mup_lightning.errors import UserError
from mup_lightning.spectral.condition import solve
from mup_lightning.spectral.families import FAMILIES, Family
from mup_lightning.spectral.roles import Role
from mup_lightning.spectral.scale import Ratios, Scale
from mup_lightning.spectral.tables import as_plain, as_text, plain_scale
from mup_lightning.studies import scaling, style
from mup_lightning.studies.probe import AXES, CLASSES, WINDOWS, ProbeSettings
from mup_lightning.studies.scaling import Band, Finding, Label, Line, Result, Run, Verdict, lines

FINITE_SIZE = 0.05
"""How far an exponent may be from a quarter without a warning, however narrow its interval: small networks bend."""

DOES = {
    Verdict.PASS: "steps as its family declares",
    Verdict.FAIL: "does not step as its family declares",
    Verdict.UNCLEAR: "may or may not step as its family declares",
}

LOOKS = {"first": (style.SERIES[0], "s", 0.97), "later": (style.SERIES[2], "o", 1.03)}
"""Window -> colour, marker, and a shift to the side, so that both stay visible where they agree."""


@dataclass(frozen=True, kw_only=True)
class Probe(Result):
    """A finished probe, whose lines are labelled (role, window, axis); `proposal` is None for an optimizer of ours."""

    settings: ProbeSettings
    facts: dict[str, Any]
    proposal: dict[str, Any] | None

    @property
    def finding(self) -> Finding:
        """The only one."""
        return self.findings[0]

    @property
    def name(self) -> str:
        """The optimizer's."""
        return self.finding.of[0]


def conclude(
    name: str, family: Family | None, settings: ProbeSettings, facts: dict[str, Any], runs: list[Run]
) -> Probe:
    """Judge every exponent by the family's declaration, or propose a family. UserError: nothing has moved."""

    def band(label: Label) -> Band | None:
        if family is None:
            return None
        scale = family.direction(solve(Role(label[0]), settings.branch_depth))
        exponent = float(scale.depth)
        if label[2] == "width":  # over these widths, where the fixed side may be the longer one
            least, most = settings.widths[0], settings.widths[-1]
            fixed = settings.inputs if label[0] == Role.INPUT else CLASSES
            sides = max(most, fixed) / max(least, fixed)
            exponent = math.log(scale.at(Ratios(most / least, side=sides))) / math.log(most / least)
        return exponent - settings.tolerance, exponent + settings.tolerance

    labels = [(role, window, axis) for role in runs[0].measured for window in WINDOWS for axis in AXES]
    found = [line for label in labels for line in lines(runs, settings.line(label[2]), partial(_value, label), band)]
    found = [line for line in found if line.fit]  # none where a step changed nothing
    if not found:
        nothing = f"{name} changed nothing in {settings.steps} steps, so there is nothing to measure. Does it warm up?"
        raise UserError(f"{nothing} Give it more --steps, or other --arguments")
    proposal, verdict = None if family else propose(name, found, settings.branch_depth), None
    if proposal is None:
        verdict, why = scaling.conclude(
            found, lambda of: f"{of.label[0]}, {WINDOWS[of.label[1]]}: {AXES[of.label[2]]}^"
        )
        sentence = f"{name} {DOES[verdict]}: {why}"
    else:
        known, off = ", ".join(proposal["nearest"]), proposal["off"]
        unlike = f"like none of ours (nearest: {known}, off by {off:g}); its own recipe is proposed"
        sentence = f"{name} steps {unlike if off else f'as declared of {known}; that recipe is proposed'}"
    finding = Finding((name,), verdict, sentence, found)
    return Probe(settings=settings, facts=facts, findings=[finding], runs=runs, proposal=proposal)


def _value(label: Label, run: Run) -> dict[Label, float]:
    role, window, _ = label
    return {label: run.measured[role][window] or 0.0}


def declared(line: Line) -> Fraction | None:
    """The declared exponent, which is the middle of its band; None for an undeclared optimizer."""
    return Fraction(sum(line.band) / 2).limit_denominator(12) if line.band else None


def snap(value: float) -> Fraction:
    """The nearest quarter."""
    return Fraction(round(4 * value), 4)


def propose(name: str, found: Sequence[Line], branch_depth: int) -> dict[str, Any]:
    """Propose a recipe: measured exponents of all roles that it updates, snapped to quarters, are taken for a family.

    In plain values: "window": the steps that it rests on, later ones if there are any; "direction": role -> ‖A‖_R;
    "recipe" and, as text, "table"; "nearest": those of our families that declare the most similar ‖A‖_R; "off": the
    largest difference of an exponent from theirs; "warnings": intervals that do not contain their quarter.
    """
    window = max(line.label[1] for line in found)  # "first" < "later"
    fits = {(line.label[0], line.label[2]): line.fit for line in found if line.label[1] == window and line.fit}
    snapped = {Role(role): Scale(*(snap(fits[role, axis].exponent) for axis in AXES)) for role, _ in fits}
    family = Family(name, lambda w: snapped.get(w.role) or FAMILIES["adamw"].direction(w))
    # A family whose declaration was measured to be wrong is no model to follow.
    known = {mine.name: _distance(snapped, mine, branch_depth) for mine in FAMILIES.values() if mine.measured is None}
    warnings = []
    for (role, axis), one in fits.items():
        quarter = snap(one.exponent)
        if not one.low <= quarter <= one.high and abs(one.exponent - quarter) > FINITE_SIZE:
            interval = tables.interval(one.exponent, one.low, one.high)
            warnings.append(f"{role} in {axis}: {interval} does not contain {quarter}, the nearest quarter")
    return {
        "window": window,
        "direction": {str(role): plain_scale(scale) for role, scale in snapped.items()},
        "recipe": as_plain(family, branch_depth),
        "table": as_text(family, branch_depth),
        "nearest": [other for other, distance in known.items() if distance == min(known.values())],
        "off": min(known.values()),
        "warnings": warnings,
    }


def _distance(snapped: dict[Role, Scale], family: Family, branch_depth: int) -> float:
    """Largest difference of an exponent from what a family declares; whole-matrix ones leave vectors to AdamW."""
    found = []
    for role, scale in snapped.items():
        mine = FAMILIES["adamw"] if family.whole_matrix and role.is_vector else family
        difference = scale / mine.direction(solve(role, branch_depth)).asymptotic
        found += [float(abs(difference.width)), float(abs(difference.depth))]
    return max(found)


def text(probe: Probe) -> str:
    """One probe for the terminal: exponents, what is declared, the verdict; a recipe where one is proposed."""
    table = [row[1:] for row in [HEAD, *_rows(probe)]]
    head = f"‖A‖_R of {probe.name}, exponents with 95 % intervals (✗ FAIL, ? UNCLEAR, – no step)"
    parts = [f"{head}\n{tables.text(table)}"]
    if probe.proposal:
        notes = [
            f"learning rate: {probe.facts['learning_rate']['meaning']}",
            f"weight decay: {probe.facts['weight_decay']['meaning']}",
            f"parameters given to it: {probe.facts['grouping']}",
            *(f"warning: {warning}" for warning in probe.proposal["warnings"]),
        ]
        parts += [f"Proposed recipe: {probe.proposal['table']}", "\n".join(notes)]
    return "\n\n".join([*parts, probe.finding.sentence])


HEAD = ["optimizer", "role", "declared n, L", "n at step 1", "n later", "L at step 1", "L later"]


def markdown(probes: Sequence[Probe]) -> str:
    """Several probes as one Markdown table: measured exponents next to the declared ones; ✗ FAIL, ? UNCLEAR."""
    return tables.markdown([HEAD, *(row for probe in probes for row in _rows(probe))]) + "\n"


def _rows(probe: Probe) -> Iterator[list[str]]:
    first = f"**{probe.name}**: {probe.finding.verdict or 'proposed'}"
    for role in _roles(probe):
        mine = {line.label[2]: str(declared(line) or 0) for line in probe.finding.lines if line.label[0] == role}
        wanted = ", ".join(mine[axis] for axis in AXES) if probe.proposal is None else "–"
        yield [first, role, wanted, *(probe.finding.cell(role, window, axis) for axis in AXES for window in WINDOWS)]
        first = ""


def _roles(probe: Probe) -> list[str]:
    return list(dict.fromkeys(line.label[0] for line in probe.finding.lines))


def picture(probe: Probe) -> Figure:
    """A column per role, width above depth. Each curve is shown relative to its smallest network."""
    roles = _roles(probe)
    figure, grid = style.panels(len(AXES), len(roles), (1.2 + 2.9 * len(roles), 6.6), sharey="row")
    for row, axis in zip(grid, AXES, strict=True):
        sizes = list(probe.settings.line(axis).values())
        for ax, role in zip(row, roles, strict=True):
            _draw(ax, probe, role, axis, np.array(sizes, dtype=float))
            ax.set_xlabel(axis)
        row[0].set_ylabel(f"‖A‖_R, relative to {axis} {sizes[0]}")
        style.share_scale(list(row), sizes, lines=3)
    for ax, role in zip(grid[0], roles, strict=True):
        where, _, bias = role.partition("_")
        several = "hidden biases" if bias else "hidden matrices"
        ax.set_title(several if where == "hidden" else f"{where} {bias or 'matrix'}")
    style.legend(figure, loc="outside lower center", ncols=len(LOOKS) + 1)
    title = f"How the raw step A of {probe.name} grows with the network (‖·‖_R: RMS operator norm)"
    figure.suptitle(f"{title}\n{textwrap.fill(probe.finding.sentence, 34 * len(roles))}", fontsize=11)
    return figure


def _draw(ax: Axes, probe: Probe, role: str, axis: str, sizes: np.ndarray) -> None:
    words, slope = [], None
    for window, (color, marker, shift) in LOOKS.items():
        line = probe.finding.line(role, window, axis)
        if line is None or line.fit is None:
            continue
        # The fitted line, which goes through the middle of the points, begins at 1.
        unit = np.exp(np.mean(np.log(line.values) - line.fit.exponent * np.log(sizes / sizes[0])))
        label = f"measured, {WINDOWS[window]} (pale: single seeds)"
        looks: dict[str, Any] = {"marker": marker, "shift": shift, "label": label, "markersize": 5}
        style.points(ax, list(sizes), np.array(line.values) / unit, color, exponent=line.fit.exponent, **looks)
        words.append((f"{WINDOWS[window]}: {line.number}", color))
        slope = declared(line)
    if slope is not None:
        ax.plot(sizes, (sizes / sizes[0]) ** float(slope), "--", color="black", linewidth=1.6, label="declared slope")
        words.append((f"declared: {tables.signed(float(slope))}", "black"))
    style.write(ax, words)
