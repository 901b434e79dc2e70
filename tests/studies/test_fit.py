"""Exponents, their intervals, and what a band makes of them: shared by all studies."""

import numpy as np
import pytest

from mup_lightning.studies.fit import Verdict, fit, overall, student_t

SIZES = (64, 128, 256, 512)


@pytest.mark.parametrize(("freedom", "wanted"), [(1, 12.7062), (2, 4.30265), (30, 2.04227), (1000, 1.96234)])
def test_student_t_is_that_of_printed_tables(freedom, wanted):
    assert student_t(freedom) == pytest.approx(wanted, rel=1e-5)


def test_an_exact_power_law_leaves_no_interval():
    found = fit(SIZES, [[3 * n**0.75 for n in SIZES], [5 * n**0.75 for n in SIZES]])
    assert (found.exponent, found.low, found.high, found.last) == pytest.approx((0.75,) * 4, abs=1e-9)


def test_the_exponent_is_the_mean_of_least_squares_lines():
    values = np.exp(np.random.default_rng(0).normal(size=(5, 4)))
    lines = [np.polyfit(np.log(SIZES), np.log(seed), 1)[0] for seed in values]
    assert fit(SIZES, values).exponent == pytest.approx(np.mean(lines))


def test_the_interval_holds_the_true_exponent_in_19_of_20_cases():
    chance = np.random.default_rng(1)
    fits = [fit(SIZES, np.exp(0.1 * chance.normal(size=(4, 4))) * np.array(SIZES) ** 0.5) for _ in range(1000)]
    assert 930 <= sum(found.low <= 0.5 <= found.high for found in fits) <= 970


def test_curvature_that_all_seeds_share_is_in_last_and_not_in_the_interval():
    curve = [n**0.5 * (1 + 32 / n) for n in SIZES]
    found = fit(SIZES, [curve, [2 * value for value in curve]])
    assert found.half_width == pytest.approx(0, abs=1e-9)
    assert found.last == pytest.approx(np.log(curve[3] / curve[2]) / np.log(2))
    assert found.last > found.exponent + 0.05


def test_the_worst_verdict_counts():
    assert overall([Verdict.PASS, Verdict.UNCLEAR, Verdict.FAIL]) is Verdict.FAIL
    assert overall([Verdict.PASS, Verdict.UNCLEAR]).exit_code == 4
    assert overall([]) is Verdict.PASS
