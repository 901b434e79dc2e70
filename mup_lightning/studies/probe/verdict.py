"""What a probe's exponents say: for a declared family a verdict, for an unknown optimizer a proposed recipe.

Imports no torch.
"""

from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

from mup_lightning.spectral.condition import solve
from mup_lightning.spectral.families import FAMILIES, Family
from mup_lightning.spectral.roles import Role
from mup_lightning.spectral.scale import Scale
from mup_lightning.spectral.tables import as_plain, plain_scale
from mup_lightning.studies.fit import Fit, Judgement, Verdict, fit, judge, overall
from mup_lightning.studies.probe.settings import AXES, WINDOWS, ProbeSettings
from mup_lightning.tables import signed

Cell = tuple[str, Role, str]
"""(window, role, axis)."""

FINITE_SIZE = 0.05
"""How far an exponent may be from a quarter without a warning, however narrow its interval: small networks bend."""


@dataclass(frozen=True)
class Proposal:
    """A recipe for an undeclared optimizer: its exponents, snapped to quarters, are taken as a family.

    Attributes:
        window: the steps it rests on: the later ones, where a recipe is used, if there are any.
        direction: role -> ‖A‖_R, for the roles that were measured.
        family: declares that direction, and AdamW's for other roles.
        nearest: the families of ours that declare the most similar ‖A‖_R.
        off: largest difference of an exponent from theirs; 0 if they declare exactly this.
        warnings: exponents whose interval does not contain the quarter they were snapped to.
    """

    window: str
    direction: dict[Role, Scale]
    family: Family
    nearest: list[str]
    off: float
    warnings: list[str]


@dataclass(frozen=True)
class Probe:
    """A finished probe.

    Attributes:
        optimizer: its name.
        settings: what was measured.
        facts: the optimizer's arguments, and what was found out before the probe.
        networks: everything measured; see `measure.measure`.
        points: ‖A‖_R for each seed and size; a window lacks the roles that it saw no step of.
        fits: their exponents.
        judgements: each exponent held against the declared one; empty for an unknown optimizer.
        proposal: a recipe for an unknown optimizer, else None.
    """

    optimizer: str
    settings: ProbeSettings
    facts: dict[str, Any]
    networks: list[dict[str, Any]]
    points: dict[Cell, list[list[float]]]
    fits: dict[Cell, Fit]
    judgements: dict[Cell, Judgement]
    proposal: Proposal | None

    @property
    def verdict(self) -> str:
        """A `Verdict`, or "proposed" where there is nothing to judge."""
        return overall(found.verdict for found in self.judgements.values()) if self.judgements else "proposed"

    @property
    def exit_code(self) -> int:
        """0 PASS or proposed, 3 FAIL, 4 UNCLEAR."""
        return self.verdict.exit_code if isinstance(self.verdict, Verdict) else 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        exponents = []
        for (window, role, axis), found in self.fits.items():
            judged = self.judgements.get((window, role, axis))
            verdict = {"declared": float(declared(judged)), "verdict": judged.verdict} if judged else {}
            exponents.append({"window": window, "role": role, "axis": axis, **asdict(found), **verdict})
        proposal: dict[str, Any] | None = None
        if self.proposal:
            proposal = {
                "window": self.proposal.window,
                "direction": {role: plain_scale(scale) for role, scale in self.proposal.direction.items()},
                "recipe": as_plain(self.proposal.family, self.settings.branch_depth),
                "nearest": self.proposal.nearest,
                "off": self.proposal.off,
                "warnings": self.proposal.warnings,
            }
        return {
            "optimizer": self.optimizer,
            "verdict": self.verdict,
            "sentence": sentence(self),
            "exponents": exponents,
            "proposal": proposal,
            "facts": self.facts,
            "settings": {key: value for key, value in asdict(self.settings).items() if key not in ("out", "json")},
            "networks": self.networks,
        }


def conclude(
    name: str,
    family: Family | None,
    settings: ProbeSettings,
    facts: dict[str, Any],
    networks: list[dict[str, Any]],
    points: dict[Cell, list[list[float]]],
) -> Probe:
    """Fit, and hold every exponent against what the family declares; without a family, propose one."""
    fits = {cell: fit(settings.line(cell[2])[0], values) for cell, values in points.items()}
    judgements = {}
    if family:
        for (window, role, axis), found in fits.items():
            exponent = float(getattr(family.direction(solve(role, settings.branch_depth)), axis))
            band = (exponent - settings.tolerance, exponent + settings.tolerance)
            judgements[window, role, axis] = judge((window, role, axis), found, band)
    proposal = None if family else propose(name, fits, settings.branch_depth)
    return Probe(name, settings, facts, networks, points, fits, judgements, proposal)


def declared(judged: Judgement) -> Fraction:
    """The declared exponent: the middle of its band."""
    return Fraction(sum(judged.band) / 2).limit_denominator(12)


def propose(name: str, fits: dict[Cell, Fit], branch_depth: int) -> Proposal:
    """Propose a recipe from measured exponents.

    Args:
        name: what to call the optimizer.
        fits: exponents of all roles that it updates.
        branch_depth: k.
    """
    window = "later" if any(window == "later" for window, _, _ in fits) else "first"
    measured = {(role, axis): found for (of, role, axis), found in fits.items() if of == window}
    snapped = {role: Scale(*(snap(measured[role, axis].exponent) for axis in AXES)) for role, _ in measured}
    family = Family(name, lambda w: snapped[w.role] if w.role in snapped else FAMILIES["adamw"].direction(w))
    off = {
        # A family whose declaration was measured to be wrong is no model to follow.
        known.name: max(_distance(scale, known, role, branch_depth) for role, scale in snapped.items())
        for known in FAMILIES.values()
        if known.measured is None
    }
    nearest = [known for known, distance in off.items() if distance == min(off.values())]
    warnings = [
        f"{role} in {axis}: the interval {signed(found.low)} to {signed(found.high)} does not contain "
        f"{snap(found.exponent)}, the nearest quarter"
        for (role, axis), found in measured.items()
        if not found.low <= snap(found.exponent) <= found.high
        and abs(found.exponent - snap(found.exponent)) > FINITE_SIZE
    ]
    return Proposal(window, snapped, family, nearest, min(off.values()), warnings)


def snap(value: float) -> Fraction:
    """The nearest quarter."""
    return Fraction(round(4 * value), 4)


def _distance(scale: Scale, family: Family, role: Role, branch_depth: int) -> float:
    """Largest difference of an exponent from what a family declares; whole-matrix ones leave vectors to AdamW."""
    mine = FAMILIES["adamw"] if family.whole_matrix and role.is_vector else family
    difference = scale / mine.direction(solve(role, branch_depth))
    return float(max(abs(difference.width), abs(difference.depth)))


def sentence(probe: Probe) -> str:
    """The outcome in plain words."""
    name, tolerance, total = probe.optimizer, f"{probe.settings.tolerance:g}", len(probe.judgements)
    if proposal := probe.proposal:
        known = ", ".join(proposal.nearest)
        if proposal.off == 0:
            return f"{name} steps as declared of {known}; that recipe is proposed."
        return (
            f"{name} steps like none of ours (nearest: {known}, off by {proposal.off:g}); its own recipe is proposed."
        )
    cells = [cell for cell, judged in probe.judgements.items() if judged.verdict is probe.verdict]
    words = [
        f"{role} in {axis}, {WINDOWS[window]}: {signed(probe.fits[window, role, axis].exponent)}, declared "
        f"{declared(probe.judgements[window, role, axis])}"
        for window, role, axis in cells[:4]
    ]
    some = f"({'; '.join(words)}{'; ...' if len(cells) > 4 else ''})"
    return {
        Verdict.PASS: f"{name} steps as its family declares: all {total} exponents agree within {tolerance}.",
        Verdict.FAIL: f"{name} does not step as its family declares: {len(cells)} of {total} exponents are off by more "
        f"than {tolerance} {some}.",
        Verdict.UNCLEAR: f"{name}: {len(cells)} of {total} exponents may or may not agree with its family within "
        f"{tolerance} {some}; more --seeds or a wider range of sizes would tell.",
    }[Verdict(probe.verdict)]
