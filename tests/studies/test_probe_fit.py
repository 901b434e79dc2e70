"""The probe's arithmetic: exponents, intervals, verdicts, and what is proposed from them."""

from fractions import Fraction

import numpy as np
import pytest

from mup_lightning.spectral.condition import solve
from mup_lightning.spectral.families import FAMILIES
from mup_lightning.spectral.recipe import exponents
from mup_lightning.spectral.roles import Role
from mup_lightning.spectral.tables import plain_scale
from mup_lightning.studies.fit import Fit, fit, student_t
from mup_lightning.studies.probe.proposal import propose, snap
from mup_lightning.studies.probe.verdict import CONSISTENT, INCONSISTENT, UNCLEAR, cells, judge, overall, sentence

SIZES = (64, 128, 256, 512)


@pytest.mark.parametrize(
    ("freedom", "wanted"), [(1, 12.7062), (2, 4.30265), (5, 2.57058), (10, 2.22814), (30, 2.04227), (1000, 1.96234)]
)
def test_student_t_is_that_of_printed_tables(freedom, wanted):
    assert student_t(freedom) == pytest.approx(wanted, rel=1e-5)


def test_an_exact_power_law_leaves_no_interval():
    found = fit(SIZES, [[3 * n**0.75 for n in SIZES], [5 * n**0.75 for n in SIZES]])
    assert (found.exponent, found.low, found.high, found.last) == pytest.approx((0.75,) * 4, abs=1e-9)


def test_the_exponent_is_the_mean_of_least_squares_lines():
    values = np.exp(np.random.default_rng(0).normal(size=(5, 4)))
    lines = [np.polyfit(np.log(SIZES), np.log(seed), 1)[0] for seed in values]
    assert fit(SIZES, values).exponent == pytest.approx(np.mean(lines))


def test_the_interval_holds_the_true_exponent_in_19_of_20_cases_or_more():
    chance = np.random.default_rng(1)
    inside = 0
    for _ in range(400):
        noise = np.exp(0.1 * chance.normal(size=(4, 4)))
        found = fit(SIZES, noise * np.array(SIZES) ** 0.5)
        inside += found.low <= 0.5 <= found.high
    assert inside >= 380


def test_curvature_that_all_seeds_share_widens_the_interval():
    curve = [n**0.5 * (1 + 32 / n) for n in SIZES]
    few, many = fit(SIZES, [curve] * 2), fit(SIZES, [curve] * 20)
    assert few.high - few.low > 0.05
    assert many.high - many.low > 0.05
    assert few.last == pytest.approx(np.log(curve[3] / curve[2]) / np.log(2))


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.4, 0.6, CONSISTENT),
        (0.3, 0.6, UNCLEAR),
        (0.3, 0.7, UNCLEAR),
        (0.66, 0.7, INCONSISTENT),
        (-0.1, 0.34, INCONSISTENT),
    ],
)
def test_verdict_of_a_cell(low, high, verdict):
    assert judge(Fit((low + high) / 2, low, high, 0.0), 0.5, 0.15) == verdict


def as_declared(optimizer, branch_depth=2, off=0.0, half=0.02):
    """Fits that say what the family declares, all exponents off by the same."""
    by_role = {}
    for role in Role:
        if not (FAMILIES[optimizer].whole_matrix and role.is_vector):
            scale = FAMILIES[optimizer].direction(solve(role, branch_depth))
            by_role[role] = {
                axis: Fit(value + off, value + off - half, value + off + half, value)
                for axis, value in (("width", float(scale.width)), ("depth", float(scale.depth)))
            }
    return {"first": by_role, "later": by_role}


@pytest.mark.parametrize("optimizer", FAMILIES)
@pytest.mark.parametrize("branch_depth", [1, 2])
def test_every_family_is_judged_by_its_own_declaration(optimizer, branch_depth):
    families = dict.fromkeys(Role, FAMILIES[optimizer])
    for off, wanted in ((0.0, CONSISTENT), (0.14, UNCLEAR), (0.3, INCONSISTENT)):
        judged = cells(as_declared(optimizer, branch_depth, off), families, branch_depth, 0.15)
        assert overall(judged) == wanted
        assert len(judged) == (12 if FAMILIES[optimizer].whole_matrix else 20)


def test_the_sentence_names_what_is_off():
    fits = as_declared("muon")
    fits["later"] = fits["later"] | {Role.HIDDEN: {"width": Fit(1.0, 0.9, 1.1, 1.0), "depth": Fit(0.0, -0.5, 0.5, 0.0)}}
    judged = cells(fits, dict.fromkeys(Role, FAMILIES["muon"]), 2, 0.15)
    assert sentence("x", judged, 0.15) == (
        "x is not what its family declares: 1 of 12 exponents are off by more than 0.15 "
        "(hidden in width, later steps: +1.00, declared +0)."
    )


@pytest.mark.parametrize("optimizer", FAMILIES)
@pytest.mark.parametrize("branch_depth", [1, 2])
def test_a_family_that_is_measured_gets_its_own_recipe(optimizer, branch_depth):
    """Round trip: exponents as a family declares them, a little off, must give that family's table."""
    family = FAMILIES[optimizer]
    proposal = propose("x", as_declared(optimizer, branch_depth, off=0.05, half=0.1), branch_depth)
    for role in Role:
        mine = FAMILIES["adamw"] if family.whole_matrix and role.is_vector else family
        row = exponents(mine, role, branch_depth)
        assert proposal["recipe"]["roles"][role] == {
            **{key: plain_scale(getattr(row, key)) for key in ("multiplier", "init_var", "lr", "weight_decay")},
            "eps": None,
        }
    assert proposal["like"] is not None
    assert proposal["nearest"]["off"] == pytest.approx(0.05)
    assert proposal["warnings"] == []
    assert proposal["window"] == "later"


def test_a_proposal_warns_where_it_snapped_too_far():
    proposal = propose("x", as_declared("adamw", off=0.1, half=0.05), 2)
    assert len(proposal["warnings"]) == 10
    assert proposal["warnings"][0] == (
        "input in width: the interval +0.05 to +0.15 does not contain 0, the nearest quarter"
    )


def test_exponents_snap_to_quarters():
    assert [snap(value) for value in (0.1, 0.13, -0.55, 0.9)] == [0, Fraction(1, 4), Fraction(-1, 2), 1]
