"""What a probe concludes from exponents, and how it is shown."""

from fractions import Fraction

import numpy as np
import pytest

from mup_lightning.spectral.condition import solve
from mup_lightning.spectral.families import FAMILIES
from mup_lightning.spectral.roles import Role
from mup_lightning.spectral.tables import as_plain
from mup_lightning.studies.probe import ProbeSettings
from mup_lightning.studies.probe.report import conclude, markdown, picture, snap, text
from mup_lightning.studies.scaling import Run, student_t


def as_declared(optimizer, branch_depth=2, off=0.0):
    """(role, window) -> the exponents of width and depth that the family declares, all off by the same."""
    found = {}
    for role in Role:
        if not (FAMILIES[optimizer].whole_matrix and role.is_vector):
            scale = FAMILIES[optimizer].direction(solve(role, branch_depth)).asymptotic
            for window in ("first", "later"):
                found[role, window] = (float(scale.width) + off, float(scale.depth) + off)
    return found


def judged(optimizer, wanted, branch_depth=2, half=0.02, family=True):
    """A probe of two seeds with these exponents, whose intervals have this half width."""
    settings = ProbeSettings(optimizer, branch_depth=branch_depth, seeds=2)
    runs = []
    for width, depth in settings.shapes:
        for seed, sign in enumerate((-1, 1)):
            measured = {str(role): {"first": None, "later": None} for role, _ in wanted}
            for (role, window), powers in wanted.items():
                n, L = (power + sign * half / student_t(1) for power in powers)
                measured[role][window] = width**n * depth**L
            runs.append(Run(("x",), (width, depth), seed, [], measured))
    facts = {"learning_rate": {"meaning": "proportional"}, "weight_decay": {"meaning": "none"}, "grouping": "all"}
    return conclude("x", FAMILIES[optimizer] if family else None, settings, facts, runs)


@pytest.mark.parametrize("optimizer", FAMILIES)
@pytest.mark.parametrize("branch_depth", [1, 2])
def test_every_family_is_judged_by_its_own_declaration(optimizer, branch_depth):
    for off, verdict in ((0.0, "PASS"), (0.14, "UNCLEAR"), (0.3, "FAIL")):
        found = judged(optimizer, as_declared(optimizer, branch_depth, off), branch_depth).finding
        assert found.verdict == verdict
        assert len(found.lines) == (12 if FAMILIES[optimizer].whole_matrix else 20)


@pytest.mark.parametrize(
    ("power", "wanted"),
    [
        (1.0, "x does not step as its family declares: 1 of 12 exponents lie outside their bands"),
        (0.1, "x may or may not step as its family declares: 1 of 12 intervals cross an edge of their bands"),
    ],
)
def test_the_sentence_names_what_is_off(power, wanted):
    found = as_declared("muon") | {(Role.HIDDEN, "later"): (power, 0.0)}
    words = judged("muon", found, half=0.1).finding.sentence
    assert wanted in words
    assert f": hidden, later steps: n^+{power:.2f} ± 0.10, allowed ±0.15" in words


@pytest.mark.parametrize("optimizer", FAMILIES)
@pytest.mark.parametrize("branch_depth", [1, 2])
def test_a_family_that_is_measured_gets_its_own_recipe(optimizer, branch_depth):
    """Round trip: exponents as a family declares them, a little off, must give that family's learning rates."""
    family = FAMILIES[optimizer]
    found = judged(optimizer, as_declared(optimizer, branch_depth, 0.05), branch_depth, half=0.1, family=False)
    for role, got in found.proposal["recipe"]["roles"].items():
        mine = FAMILIES["adamw"] if family.whole_matrix and Role(role).is_vector else family
        assert got == as_plain(mine, branch_depth)["roles"][role] | {"eps": None}
    assert [found.proposal[key] for key in ("window", "off", "warnings")] == ["later", 0, []]
    assert (optimizer in found.proposal["nearest"]) == (optimizer != "soap")  # its declaration was measured to be wrong
    assert "Proposed recipe: x" in text(found)


def test_a_proposal_warns_where_it_snapped_too_far():
    warnings = judged("adamw", as_declared("adamw", off=0.1), half=0.05, family=False).proposal["warnings"]
    assert len(warnings) == 10
    assert warnings[0] == "input in width: +0.10 [+0.05, +0.15] does not contain 0, the nearest quarter"


def test_exponents_snap_to_quarters():
    assert [snap(value) for value in (0.1, 0.13, -0.55, 0.9)] == [0, Fraction(1, 4), Fraction(-1, 2), 1]


def shown():
    """Hidden matrices that grow as n^0.5 · L^-1; SGD declares n^0 · L^-1. Nothing moved at step 1."""
    return judged("sgd", {(Role.HIDDEN, "later"): (0.5, -1.0)}, half=0.1)


def slope_of(line):
    return np.polyfit(np.log(line.get_xdata()), np.log(line.get_ydata()), 1)[0]


def test_the_picture_shows_points_fit_and_declared_slope():
    figure = picture(shown())
    for ax, fitted, declared in zip(figure.axes, (0.5, -1.0), (0.0, -1.0), strict=True):
        dashed = [line for line in ax.lines if line.get_linestyle() == "--"]
        full = [line for line in ax.lines if line.get_linestyle() == "-"]
        means = [line for line in ax.lines if line.get_marker() == "o"]
        assert [slope_of(line) for line in dashed] == pytest.approx([declared])
        assert [slope_of(line) for line in full + means] == pytest.approx([fitted] * 2)
        assert [line.get_ydata()[0] for line in full + dashed] == pytest.approx([1, 1])
        labels = {f"later steps: {fitted:+.2f} ± 0.10", f"declared: {declared:+.2f}"}
        assert {words.get_text() for words in ax.texts} == labels
    assert "x does not step as its family" in figure.get_suptitle()


def test_the_tables_mark_what_differs():
    (row,) = [line.split("  ") for line in text(shown()).splitlines() if line.startswith("hidden")]
    cells = ["hidden", "0, -1", "–", "+0.50 ± 0.10 ✗", "–", "-1.00 ± 0.10"]
    assert [cell.strip() for cell in row if cell] == cells
    cells_of = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown([shown()]).splitlines()]
    assert cells_of[2] == ["**x**: FAIL", *cells]
