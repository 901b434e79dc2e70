"""What chance does to the transfer report: seeds, their effects, and intervals that hold the truth."""

import numpy as np
import pytest

from tests.studies.tables import SIZES, curves, judged, report


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    """Ten times fewer draws than users get: simulations take long, and cover no less."""
    monkeypatch.setattr("mup_lightning.studies.transfer.estimate._DRAWS", 400)


def test_ties_within_the_noise_are_a_plateau(tmp_path):
    rows = [
        ("mup", "width", size, value, seed, 3 + heights[value + 9] + off)
        for size, heights in ((64, (0.1, 0.002, 0.0, 0.003, 0.1)), (128, (0.2, 0.1, 0.0, 0.1, 0.2)))
        for value in range(-9, -4)
        for seed, off in enumerate(np.roll((-0.01, 0.0, 0.01), value))  # another seed's effect at every value
    ]
    group = report(tmp_path, rows)
    assert group["noise"] == pytest.approx(0.01)
    assert group["noise_paired"] == pytest.approx(0.01, rel=0.25)
    assert group["plateau"] == {"64": [-8.0, -7.0, -6.0]}
    # Five points, weighted: the middle of a flat bottom that leans neither way.
    assert group["optimum"]["64"] == pytest.approx(-7.0, abs=0.05)
    low, high = group["optimum_ci"]["64"]
    exact = 2 * 1.959964 * 0.15  # the interval of a curve without noise: its unknown shape alone
    assert group["optimum_ci"]["128"][1] - group["optimum_ci"]["128"][0] == pytest.approx(exact, rel=0.05)
    assert high - low > 1.3 * exact


@pytest.mark.parametrize(
    ("draw", "noise", "effect", "scatter", "least"),
    [
        (1, 0.01, 0.0, 0.0, 17),  # of 20; 19 are expected
        (3, 0.01, 0.05, 0.0, 17),  # the effect of a seed is no noise between values
        (2, 0.002, 0.0, 0.15, 16),  # true optima scatter; by the seeds' noise alone it would be about 6
    ],
)
def test_the_interval_holds_the_true_slope(tmp_path, draw, noise, effect, scatter, least):
    chance, inside, widths = np.random.default_rng(draw), 0, []
    for _ in range(20):
        optima = [-7.2 - 0.1 * i + (scatter and scatter * chance.normal()) for i in range(4)]
        group = report(tmp_path, curves(SIZES, optima, noise=noise, seeds=3, chance=chance, effect=effect))
        low, high = group["slope_ci"]
        inside += low <= -0.1 <= high
        widths.append(high - low)
        assert group["noise_paired"] == pytest.approx(noise, rel=0.35)
    assert inside >= least
    assert scatter or sum(width < 0.25 for width in widths) >= 17  # as narrow as the rest's noise makes them
    assert (group["noise"] > 0.03) == (effect > 0)


DESIGNS = {
    "around the best": lambda size, value: range(3) if -8 <= value <= -6 else (0,),
    "two that never meet": lambda size, value: (0, 1) if value % 2 else (2, 3),
    "other ones at each value of the largest size": lambda size, value: range(3) if size < 512 else (value + 10,),
}


@pytest.mark.parametrize("design", DESIGNS)
def test_intervals_hold_the_optimum_whoever_ran_which_value(tmp_path, design):
    """Where the same seeds stand behind two values their effects cancel; where others do, they count in full."""
    chance = np.random.default_rng(4)
    inside = 0
    for _ in range(15):
        rows = curves(SIZES, (-6.8,) * 4, 0.003, seeds=8, curvature=0.02, chance=chance, effect=0.02)
        group = report(tmp_path, [row for row in rows if row[4] in DESIGNS[design](row[2], row[3])])
        low, high = group["optimum_ci"]["512"]
        inside += low <= -6.8 <= high
    assert inside >= 12  # of 15; 14 are expected; with no regard to who ran what, 3 to 9


def test_means_are_those_of_a_mixed_model(tmp_path):
    """Against the textbook's formula: seeds 0, 1 ran two values, seed 2 the third alone."""
    table = {-8: {0: 3.10, 1: 3.14}, -7: {0: 3.00, 1: 3.05}, -6: {0: 3.11, 2: 3.08}}
    rows = [
        ("mup", "width", size, value, seed, loss)
        for size in (64, 128)
        for value, losses in table.items()
        for seed, loss in losses.items()
    ]
    (finding,) = judged(tmp_path, rows)
    rest, between = finding.noise.residual**2, finding.noise.between_seeds**2
    y = np.array([loss for losses in table.values() for loss in losses.values()])
    seeds = np.array([seed for losses in table.values() for seed in losses])
    values = np.repeat([0, 1, 2], 2)
    covariance = rest * np.eye(6) + (between - rest) * (seeds[:, None] == seeds[None])
    x = (values[:, None] == np.arange(3)).astype(float)
    of_means = np.linalg.inv(x.T @ np.linalg.solve(covariance, x))
    expected = of_means @ x.T @ np.linalg.solve(covariance, y)
    curve = finding.curves[0]
    assert curve.means.tolist() == pytest.approx(expected)
    error = np.sqrt(of_means[0, 0] + of_means[2, 2] - 2 * of_means[0, 2])
    assert curve.difference_ses[0, 2] == pytest.approx(error)


def test_unstable_values_are_no_noise(tmp_path):
    rows = curves(SIZES, (-7, -7, -7, -7), noise=0.005, seeds=3)
    wild = [(*row[:5], row[5] + row[4]) if row[3] == -4 else row for row in rows]
    assert report(tmp_path, wild)["noise"] == pytest.approx(0.005, rel=0.3)


def test_a_wild_value_beyond_a_worse_one_is_no_part_of_the_plateau(tmp_path):
    """Measured at width 64: 2^-4 nearly diverged with one seed, so that nothing is sure of its mean but its place."""
    losses = {-8: (2.4420, 2.4571), -7: (2.41, 2.4316), -6: (2.4497, 2.4637), -5: (2.467, 2.4864), -4: (2.6409, 2.498)}
    rows = [
        ("mup", "width", size, value, seed, loss - 0.01 * i)
        for i, size in enumerate((64, 128))
        for value, seeds in losses.items()
        for seed, loss in enumerate(seeds)
    ]
    group = report(tmp_path, rows)
    assert group["best_loss"]["64"] == pytest.approx(2.4208, abs=1e-3)
    assert all(-4 not in plateau for plateau in group["plateau"].values()), group["plateau"]


def test_a_given_noise_stands_in_for_seeds(tmp_path):
    rows = curves(SIZES, (-7.2, -7.2, -7.2, -7.2))
    given = report(tmp_path, rows, noise=0.03)
    assert given["noise"] == 0.03
    assert given["plateau"]
    assert not report(tmp_path, rows)["plateau"]
