"""What a probe concludes from exponents, and how it is shown."""

from fractions import Fraction

import numpy as np
import pytest

from mup_lightning.spectral.condition import solve
from mup_lightning.spectral.families import FAMILIES
from mup_lightning.spectral.recipe import exponents
from mup_lightning.spectral.roles import Role
from mup_lightning.studies.fit import Fit, Verdict, student_t
from mup_lightning.studies.probe.measure import points
from mup_lightning.studies.probe.report import markdown, picture, text
from mup_lightning.studies.probe.settings import ProbeSettings
from mup_lightning.studies.probe.verdict import conclude, propose, sentence, snap


def as_declared(optimizer, branch_depth=2, off=0.0, half=0.02):
    """Fits that say what the family declares, all exponents off by the same."""
    found = {}
    for role in Role:
        if not (FAMILIES[optimizer].whole_matrix and role.is_vector):
            scale = FAMILIES[optimizer].direction(solve(role, branch_depth))
            for window in ("first", "later"):
                for axis, value in (("width", float(scale.width)), ("depth", float(scale.depth))):
                    found[window, role, axis] = Fit(value + off, value + off - half, value + off + half, value)
    return found


def judged(optimizer, fits, branch_depth=2):
    """A probe of two seeds whose exponents and intervals are these."""
    settings = ProbeSettings(optimizer, branch_depth=branch_depth, seeds=2)
    points = {}
    for cell, wanted in fits.items():
        slopes = (wanted.exponent + sign * wanted.half_width / student_t(1) for sign in (-1, 1))
        points[cell] = [[size**slope for size in settings.line(cell[2])[0]] for slope in slopes]
    return conclude("x", FAMILIES[optimizer], settings, {}, [], points)


@pytest.mark.parametrize("optimizer", FAMILIES)
@pytest.mark.parametrize("branch_depth", [1, 2])
def test_every_family_is_judged_by_its_own_declaration(optimizer, branch_depth):
    for off, verdict, code in ((0.0, Verdict.PASS, 0), (0.14, Verdict.UNCLEAR, 4), (0.3, Verdict.FAIL, 3)):
        found = judged(optimizer, as_declared(optimizer, branch_depth, off), branch_depth)
        assert (found.verdict, found.exit_code) == (verdict, code)
        assert len(found.judgements) == (12 if FAMILIES[optimizer].whole_matrix else 20)


@pytest.mark.parametrize(
    ("exponent", "half", "wanted"),
    [
        (1.0, 0.1, "does not step as its family declares: 1 of 12 exponents are off by more than 0.15"),
        (0.1, 0.1, "1 of 12 exponents may or may not agree with its family within 0.15"),
    ],
)
def test_the_sentence_names_what_is_off(exponent, half, wanted):
    fits = as_declared("muon")
    fits["later", Role.HIDDEN, "width"] = Fit(exponent, exponent - half, exponent + half, exponent)
    words = sentence(judged("muon", fits))
    assert wanted in words
    assert f"(hidden in width, later steps: +{exponent:.2f}, declared 0)" in words


@pytest.mark.parametrize("optimizer", FAMILIES)
@pytest.mark.parametrize("branch_depth", [1, 2])
def test_a_family_that_is_measured_gets_its_own_recipe(optimizer, branch_depth):
    """Round trip: exponents as a family declares them, a little off, must give that family's learning rates."""
    family = FAMILIES[optimizer]
    proposal = propose("x", as_declared(optimizer, branch_depth, off=0.05, half=0.1), branch_depth)
    for role in Role:
        mine = FAMILIES["adamw"] if family.whole_matrix and role.is_vector else family
        wanted, found = exponents(mine, role, branch_depth), exponents(proposal.family, role, branch_depth)
        assert (found.lr, found.weight_decay, found.eps) == (wanted.lr, wanted.weight_decay, None)
    assert (proposal.window, proposal.off, proposal.warnings) == ("later", 0, [])
    assert (optimizer in proposal.nearest) == (optimizer != "soap")  # whose declaration was measured to be wrong


def test_a_proposal_warns_where_it_snapped_too_far():
    proposal = propose("x", as_declared("adamw", off=0.1, half=0.05), 2)
    assert len(proposal.warnings) == 10
    assert proposal.warnings[0] == "input in width: the interval +0.05 to +0.15 does not contain 0, the nearest quarter"


def test_exponents_snap_to_quarters():
    assert [snap(value) for value in (0.1, 0.13, -0.55, 0.9)] == [0, Fraction(1, 4), Fraction(-1, 2), 1]


def shown():
    """Hidden matrices that grow as n^0.5 · L^-1; SGD declares n^0 · L^-1. Nothing moved at step 1."""
    exponents = (("width", 0.5), ("depth", -1.0))
    return judged("sgd", {("later", Role.HIDDEN, axis): Fit(x, x - 0.1, x + 0.1, x) for axis, x in exponents})


def slope_of(line):
    return np.polyfit(np.log(line.get_xdata()), np.log(line.get_ydata()), 1)[0]


def test_points_take_the_line_on_which_only_one_size_varies():
    settings = ProbeSettings("sgd", widths=[32, 64, 128], depths=[2, 4, 8], seeds=2)
    networks = []
    for width, depth in settings.shapes:
        for seed in range(2):
            roles = {"hidden": {"windows": {"first": None, "later": (1 + seed) * width / depth}}}
            networks.append({"width": width, "depth": depth, "seed": seed, "roles": roles})
    assert points(networks, settings) == {
        ("later", "hidden", "width"): [[16, 32, 64], [32, 64, 128]],
        ("later", "hidden", "depth"): [[16, 8, 4], [32, 16, 8]],
    }


def test_the_picture_shows_points_fit_and_declared_slope():
    figure = picture(shown())
    for ax, fitted, declared in zip(figure.axes, (0.5, -1.0), (0.0, -1.0), strict=True):
        dashed = [line for line in ax.lines if line.get_linestyle() == "--"]
        full = [line for line in ax.lines if line.get_linestyle() == "-"]
        means = [line for line in ax.lines if line.get_marker() == "o"]
        assert [slope_of(line) for line in dashed] == pytest.approx([declared])
        assert [slope_of(line) for line in full + means] == pytest.approx([fitted] * 2)
        # The fitted line goes through the points' middle, and pale seeds lie on both sides.
        assert np.log(means[0].get_ydata()).mean() == pytest.approx(np.log(full[0].get_ydata()).mean())
        pale = [line.get_ydata() for line in ax.lines if line.get_marker() == "."]
        assert np.exp(np.log(pale).mean(0)) == pytest.approx(means[0].get_ydata())
        labels = {f"later steps: {fitted:+.2f} ± 0.10", f"declared: {declared:+.2f}"}
        assert {words.get_text() for words in ax.texts} == labels
    assert "x does not step as its family" in figure.get_suptitle()


def test_the_tables_mark_what_differs():
    rows = [line.split() for line in text(shown()).splitlines() if line.startswith("hidden")]
    assert rows == ["hidden later steps +0.50 [+0.40, +0.60] 0 FAIL -1.00 [-1.10, -0.90] -1 PASS".split()]
    assert "its first step changes nothing" in text(shown())
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown([shown()]).splitlines()]
    assert cells[2] == ["**x**: FAIL", "hidden", "0, -1", "–", "+0.50 ± 0.10 ✗", "–", "-1.00 ± 0.10"]
