"""From norms to a verdict, on numbers whose exponents are known."""

import numpy as np
import pytest

from mup_lightning.errors import UserError
from mup_lightning.experiments.coordinates.fits import features, fit
from mup_lightning.experiments.coordinates.settings import CheckSettings
from mup_lightning.experiments.coordinates.verdict import judge
from tests.experiments.coordinate_runs import judged, runs

WIDTHS = CheckSettings(widths=[64, 128, 256, 512], seeds=3)
DEPTHS = CheckSettings(axis="depth", depths=[2, 4, 8, 16], seeds=3)
BOTH = CheckSettings(axis="both", ratios=[1.0, 2.0, 4.0], seeds=3)


def test_the_fit_is_least_squares_with_a_constant_for_every_seed():
    """Against numpy's solver on the design matrix; 2.306 is the 97.5 % point of t at 8 degrees of freedom."""
    chance = np.random.default_rng(0)
    sizes, seeds = np.array([64.0, 128.0, 256.0, 1024.0]), 3
    values = np.exp(0.3 * np.log(sizes) + chance.normal(0, 0.1, (seeds, 4)) + np.array([[0.0], [1.0], [5.0]]))
    design = np.zeros((12, 4))
    design[:, 0] = np.tile(np.log(sizes), seeds)
    design[np.arange(12), 1 + np.repeat(np.arange(3), 4)] = 1
    solution, squares, *_ = np.linalg.lstsq(design, np.log(values).ravel())
    deviation = np.sqrt(squares[0] / 8 * np.linalg.inv(design.T @ design)[0, 0])
    found = fit(sizes.tolist(), values.tolist())
    assert found.exponent == pytest.approx(solution[0], abs=1e-12)
    assert found.high - found.exponent == pytest.approx(2.306 * deviation, rel=1e-3)
    assert found.exponent - found.low == pytest.approx(2.306 * deviation, rel=1e-3)


def test_level_features_pass():
    found = judged(WIDTHS)
    assert found["verdict"] == "PASS"
    assert found["sentence"].startswith("no exponent leaves its band; the nearest to its edge is ")
    assert len(found["exponents"]) == 15 * 3  # 3 single features, 3 points at 4 places


@pytest.mark.parametrize(
    ("point", "kind", "power", "words"),
    [
        ("logits", "norms", 0.3, "logits, after the last step, grows as n^+0.3"),
        ("logits", "norms", -0.3, "logits, after the last step, shrinks as n^-0.3"),
        ("mlp", "changes", 0.5, "its change after the last step, grows as n^+0.5"),
        ("attention", "changes", -0.5, "its change after the last step, shrinks as n^-0.5"),
    ],
)
def test_growth_and_vanishing_fail_by_name(point, kind, power, words):
    found = judged(WIDTHS, {(point, kind): power})
    assert found["verdict"] == "FAIL"
    assert found["worst"]["feature"].split(",")[0] == point
    assert words in found["sentence"]
    assert {one["feature"].split(",")[0] for one in found["exponents"] if one["verdict"] == "FAIL"} == {point}


def test_noise_is_not_a_verdict():
    found = judged(WIDTHS, noise=0.25)
    assert found["verdict"] == "INCONCLUSIVE"
    assert "more --seeds" in found["sentence"]


def test_thresholds_are_options():
    exponents = {("logits", "norms"): 0.2}
    assert judged(WIDTHS, exponents)["verdict"] == "FAIL"
    assert judged(CheckSettings(widths=[64, 128, 256, 512], seeds=3, feature_band=0.3), exponents)["verdict"] == "PASS"


def test_a_change_of_zero_has_vanished():
    found = judged(WIDTHS, {("mlp", "changes"): -2000.0})  # below the smallest float
    assert found["verdict"] == "FAIL"
    assert "mlp" in found["sentence"]
    assert found["sentence"].endswith("its change after the last step, is zero")


@pytest.mark.parametrize(
    ("settings", "tap", "power", "verdict"),
    [
        (WIDTHS, "logits", -0.5, "PASS"),  # the head's random products
        (WIDTHS, "logits", -1.0, "FAIL"),
        (WIDTHS, "logits", 0.5, "FAIL"),
        (WIDTHS, "embedding", -0.5, "FAIL"),
        (DEPTHS, "residual", -0.5, "PASS"),  # the sum of L random branches of size 1/L
        (DEPTHS, "residual", -1.0, "FAIL"),
        (DEPTHS, "residual", 0.5, "FAIL"),
        (DEPTHS, "embedding", -0.5, "FAIL"),
        (BOTH, "logits", -1.0, "PASS"),
    ],
)
def test_at_initialisation_only_what_is_random_may_shrink(settings, tap, power, verdict):
    found = runs(settings)
    shapes = settings.shapes(64, 2)
    sizes = dict(zip(shapes, settings.sizes, strict=True))
    for run in found:
        for name, curve in run["norms"].items():
            if name.split("/")[0] == tap:
                curve[0] *= sizes[run["width"], run["depth"]] ** power
    result = judge(found, sizes, settings)
    assert result["verdict"] == verdict
    if verdict == "FAIL":
        assert (result["worst"]["feature"].split(",")[0], result["worst"]["quantity"]) == (tap, "init")


def test_of_several_faults_the_first_is_named():
    """What training makes of a wrong start is larger, but follows from it."""
    found = runs(WIDTHS, {("mlp", "norms"): 3.0})
    for run in found:
        run["norms"]["embedding"][0] *= run["width"] ** 0.5
    worst = judge(found, {(width, 2): width for width in WIDTHS.widths}, WIDTHS)["worst"]
    assert worst == {"feature": "embedding", "quantity": "init"}


def test_divergence_of_the_smallest_model_tells_nothing_of_a_larger_one_fails():
    found = judged(WIDTHS, diverged=[(64, 2), (512, 2)])
    assert found["verdict"] == "INCONCLUSIVE"
    assert "diverges at the smallest size already, width 64 and depth 2" in found["sentence"]
    assert found["exponents"] == []  # two sizes are left: no line

    found = judged(WIDTHS, diverged=[(512, 2)])
    assert found["verdict"] == "FAIL"
    assert "diverges at width 512, depth 2, but not at the smallest" in found["sentence"]
    assert found["diverged"][0] == "(512, 2) seed 1: step 1: the loss is nan"
    assert found["exponents"]  # of the three sizes that are left


def test_blocks_are_compared_at_equal_fractions_of_the_depth():
    depth, width = features("depth"), features("width")
    assert "residual, first block" in width
    assert "residual, first block" not in depth  # 1/L of the way
    assert [depth["residual, middle block"](n) for n in (2, 8)] == [["residual/0"], ["residual/3"]]
    assert [depth["mlp, middle block"](n) for n in (2, 8)] == [["mlp/1"], ["mlp/4"]]  # what they are given
    assert depth["mlp, last block"](8) == ["mlp/7"]
    assert depth["mlp, largest"](3) == ["mlp/0", "mlp/1", "mlp/2"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"widths": [64, 128]}, "--widths is 64,128; expected at least three numbers"),
        ({"depths": [8, 4, 2]}, "--depths is 8,4,2; .* from small to large"),
        ({"ratios": [0.0, 1.0, 2.0]}, "--ratios is 0,1,2; .* above 0"),
        ({"seeds": 1}, "--seeds is 1; expected at least 2"),
        ({"change_band": 0.0}, "--change_band is 0.0; expected an exponent above 0"),
        ({"workers": -1}, "--workers is -1; expected 0"),
    ],
)
def test_impossible_settings_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        CheckSettings(**values)


def test_ratios_make_whole_sizes():
    settings = CheckSettings(axis="both", ratios=[1.0, 1.5, 2.0])
    assert settings.shapes(64, 2) == [(64, 2), (96, 3), (128, 4)]
    with pytest.raises(UserError, match=r"--ratios: 1\.5 times width 64 and depth 1 are not whole numbers"):
        settings.shapes(64, 1)
