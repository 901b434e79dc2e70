"""What the studies share: runs in order, exponents, their intervals and verdicts, and points on a shared scale."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from mup_lightning.errors import UserError
from mup_lightning.studies import style
from mup_lightning.studies.assumptions import AssumptionSettings
from mup_lightning.studies.coordinates import CheckSettings
from mup_lightning.studies.probe import ProbeSettings
from mup_lightning.studies.scaling import (
    Finding,
    Fit,
    Run,
    Verdict,
    exit_code,
    fit,
    judge,
    lines,
    overall,
    six_digits,
)
from mup_lightning.studies.workers import run_all

SIZES = {(16, 2): 16, (32, 2): 32, (64, 2): 64}
WIDTHS = (64, 128, 256, 512)


def test_the_longest_begins_and_results_are_in_order(capsys):
    begun = []
    assert run_all("study", lambda item: begun.append(item) or -item, [1, 2, 3], 0, [1.0, 5.0, 2.0]) == [-1, -2, -3]
    assert begun == [2, 3, 1]
    assert capsys.readouterr().err == "study: 3 trainings in this process\n"


def grown(power, noise=0.0):
    """Runs at all sizes, and at one more that has no place on the line; a value that grows, and one that is zero."""
    return [
        Run(("x",), shape, seed, [], {"grows": (1 + noise * seed) * shape[0] ** power, "zero": 0.0})
        for seed in (2, 1)
        for shape in (*SIZES, (64, 8))
    ]


def test_every_value_has_a_line_over_size():
    bands = {"grows": (0.4, 0.6), "zero": None}
    one, zero = lines(
        grown(0.5, noise=1.0),
        SIZES,
        lambda run: {(name,): value for name, value in run.measured.items()},
        lambda label: bands[label[0]],
    )
    assert one.values == [[2 * n**0.5 for n in SIZES.values()], [3 * n**0.5 for n in SIZES.values()]]  # by seed
    assert (one.fit.exponent, one.verdict) == (pytest.approx(0.5), Verdict.PASS)
    assert one.means == pytest.approx([2.5 * n**0.5 for n in SIZES.values()])
    assert (zero.fit, zero.verdict) == (None, None)
    finding = Finding(("x",), Verdict.FAIL, "", [one, zero])
    assert [finding.cell("grows"), finding.cell("zero"), finding.cell("other")] == ["+0.50 ± 0.00", "zero", "–"]


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.4, 0.6, Verdict.PASS),
        (0.3, 0.6, Verdict.UNCLEAR),
        (0.3, 0.7, Verdict.UNCLEAR),
        (0.66, 0.7, Verdict.FAIL),
        (-0.1, 0.34, Verdict.FAIL),
    ],
)
def test_an_interval_against_a_band(low, high, verdict):
    assert judge(Fit((low + high) / 2, low, high, 0.0), (0.35, 0.65)) is verdict
    assert judge(None, (0.35, 0.65)) is Verdict.FAIL


def test_the_worst_verdict_is_the_exit_status():
    found = {verdict: Finding((), verdict, "", []) for verdict in (None, *Verdict)}
    assert [exit_code([found[None], found[verdict]]) for verdict in found] == [0, 0, 3, 4]
    assert exit_code(found.values()) == 3
    assert overall([]) is Verdict.PASS


@pytest.mark.parametrize(
    ("study", "values", "message"),
    [
        (CheckSettings, {"widths": [64, 128]}, r"--widths is \[64, 128\]; expected at least three numbers"),
        (CheckSettings, {"ratios": [0.0, 1.0, 2.0]}, "--ratios is .* above 0"),
        (CheckSettings, {"control_seeds": 1}, "--control-seeds is 1; expected a whole number of at least 2"),
        (AssumptionSettings, {"steps": 6, "warmup": 6}, "--warmup is 6; expected fewer steps than the 6 of --steps"),
        (AssumptionSettings, {"optimizer": []}, r"--optimizer is \[\]; expected one or more"),
        (ProbeSettings, {"optimizer": "sgd", "seeds": 1}, "--seeds is 1; expected at least 2"),
        (ProbeSettings, {"optimizer": "sgd", "steps": 4}, "--steps is 4; expected at least 5"),
        (ProbeSettings, {"optimizer": "muonn"}, "--optimizer is 'muonn'; expected .*sgd, adamw"),
        (ProbeSettings, {"optimizer": "sgd", "all": True}, "expected either --optimizer NAME or --all"),
        (ProbeSettings, {}, "expected either --optimizer NAME or --all"),
        (ProbeSettings, {"all": True, "arguments": {"beta1": 0.5}}, "--arguments goes with --optimizer"),
    ],
)
def test_impossible_settings_are_refused(study, values, message):
    with pytest.raises(UserError, match=message):
        study(**values)


def test_numbers_are_written_with_six_digits():
    assert six_digits({"a": [1 / 3, (123456.7, 1e-9 / 7)]}) == {"a": [0.333333, [123457.0, 1.42857e-10]]}


def test_points_are_drawn_with_their_means_and_a_line_through_their_middle():
    upper, lower = Figure().subplots(2, 1)
    values = [[n**0.5 * factor for n in SIZES.values()] for factor in (1, 4)]
    style.points(upper, list(SIZES.values()), values, "red", exponent=0.5, shift=1.1)
    *pale, fitted, means = upper.lines
    assert [list(line.get_ydata()) for line in pale] == values
    assert fitted.get_ydata() == pytest.approx(means.get_ydata())
    assert means.get_ydata() == pytest.approx(2 * np.array(values[0]))
    assert means.get_xdata() / fitted.get_xdata() == pytest.approx(1.1)
    style.points(lower, [16, 32], [[100.0, 101.0]], "red", seeds=False)
    style.share_scale([upper, lower], [16, 32, 64])
    assert upper.get_ylim() == lower.get_ylim()
    assert lower.get_ylim()[1] > 100


def test_the_exponent_is_the_mean_of_least_squares_lines():
    values = np.exp(np.random.default_rng(0).normal(size=(5, 4)))
    lines = [np.polyfit(np.log(WIDTHS), np.log(seed), 1)[0] for seed in values]
    assert fit(WIDTHS, values).exponent == pytest.approx(np.mean(lines))


def test_the_interval_holds_the_true_exponent_in_19_of_20_cases():
    chance = np.random.default_rng(1)
    fits = [fit(WIDTHS, np.exp(0.1 * chance.normal(size=(4, 4))) * np.array(WIDTHS) ** 0.5) for _ in range(1000)]
    assert 930 <= sum(found.low <= 0.5 <= found.high for found in fits) <= 970


def test_curvature_that_all_seeds_share_is_in_last_and_not_in_the_interval():
    curve = [n**0.5 * (1 + 32 / n) for n in WIDTHS]
    found = fit(WIDTHS, [curve, [2 * value for value in curve]])
    assert found.half_width == pytest.approx(0, abs=1e-9)
    assert found.last == pytest.approx(np.log(curve[3] / curve[2]) / np.log(2))
    assert found.last > found.exponent + 0.05
