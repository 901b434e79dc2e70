"""From norms to a verdict, on numbers whose exponents are known."""

import numpy as np
import pytest

from mup_lightning.errors import UserError
from mup_lightning.studies.coordinates.check import risen
from mup_lightning.studies.coordinates.settings import CheckSettings
from mup_lightning.studies.coordinates.verdict import judge
from mup_lightning.studies.fits import features, fit
from tests.studies.coordinate_runs import judged, runs

WIDTHS = CheckSettings(widths=[64, 128, 256, 512], seeds=3)
DEPTHS = CheckSettings(axis="depth", depths=[2, 4, 8, 16], seeds=3)
BOTH = CheckSettings(axis="both", ratios=[1.0, 2.0, 4.0], seeds=3)


def test_the_fit_is_the_mean_of_the_seeds_own_slopes():
    """Against numpy's own line through each seed; 4.303 is the 97.5 % point of t at 2 degrees of freedom."""
    chance = np.random.default_rng(0)
    sizes, seeds = np.array([64.0, 128.0, 256.0, 1024.0]), 3
    values = np.exp(0.3 * np.log(sizes) + chance.normal(0, 0.1, (seeds, 4)) + np.array([[0.0], [1.0], [5.0]]))
    slopes = [np.polyfit(np.log(sizes), np.log(of_seed), 1)[0] for of_seed in values]
    found = fit(sizes.tolist(), values.tolist())
    assert found.exponent == pytest.approx(np.mean(slopes), abs=1e-12)
    half = 4.303 * np.std(slopes, ddof=1) / np.sqrt(3)
    assert found.high - found.exponent == pytest.approx(half, rel=1e-3)
    assert found.exponent - found.low == pytest.approx(half, rel=1e-3)
    assert found.last == pytest.approx(np.mean([np.polyfit(np.log(sizes[2:]), np.log(v[2:]), 1)[0] for v in values]))


def test_the_interval_holds_the_truth_in_19_of_20_cases_also_where_small_models_are_noisier():
    """Three times the noise at the smallest size, which also belongs to the farthest point of the line."""
    chance, sizes = np.random.default_rng(1), [16.0, 32.0, 64.0]
    noise = np.array([0.3, 0.1, 0.1])
    fits = [fit(sizes, np.exp(chance.normal(0, noise, (3, 3))).tolist()) for _ in range(2000)]
    inside = np.mean([one.low <= 0 <= one.high for one in fits])
    assert 0.935 < inside < 0.965  # the binomial deviation is 0.005; the scatter of all points comes to 0.91


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
    ("settings", "tap", "power", "layer_norm", "verdict"),
    [
        (WIDTHS, "logits", -0.5, True, "PASS"),  # the head's random products
        (WIDTHS, "logits", -1.0, True, "FAIL"),
        (WIDTHS, "logits", 0.5, True, "FAIL"),
        (WIDTHS, "embedding", -0.5, True, "FAIL"),
        (DEPTHS, "residual", -0.5, True, "PASS"),  # the sum of L random branches of size 1/L
        (DEPTHS, "residual", -1.0, True, "FAIL"),
        (DEPTHS, "residual", 0.5, True, "FAIL"),
        (DEPTHS, "embedding", -0.5, True, "FAIL"),
        (DEPTHS, "final_norm", -0.5, True, "FAIL"),  # LayerNorm takes the size away
        (DEPTHS, "final_norm", -0.5, False, "PASS"),
        (DEPTHS, "mlp", -0.5, False, "FAIL"),  # the first block is given the embedding
        (BOTH, "logits", -1.0, True, "FAIL"),
        (BOTH, "logits", -1.0, False, "PASS"),
    ],
)
def test_at_initialisation_only_what_is_random_may_shrink(settings, tap, power, layer_norm, verdict):
    found = runs(settings)
    shapes = settings.shapes(64, 2)
    sizes = dict(zip(shapes, settings.sizes, strict=True))
    for run in found:
        for name, curve in run["norms"].items():
            if name.split("/")[0] == tap:
                curve[0] *= sizes[run["width"], run["depth"]] ** power
    result = judge(found, sizes, settings, layer_norm=layer_norm)
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


@pytest.mark.parametrize(
    ("losses", "told"),
    [
        ([5.5, 400.0], "step 2: the loss is 400; it was 5.5 in step 1, and a model that knows nothing has 5.545"),
        ([5.5, 5.4, 6.6], "step 3: the loss is 6.6"),
        ([5.5, 6.4, 5.0], None),  # a nat is not much in a first step
        ([5.7, 6.6], "step 2: the loss is 6.6"),  # more than a nat above ln V
        ([4.0, 5.1], "step 2: the loss is 5.1"),  # below ln V, but a nat is lost
        ([9.0, 8.0, 7.0], None),  # a bad start that is being mended
        ([9.0, 9.1], "step 2: the loss is 9.1"),
        ([5.5], None),
        ([], None),
    ],
)
def test_a_loss_that_rises_has_diverged_though_it_is_finite(losses, told):
    found = risen(losses, 256)
    assert (found is None) == (told is None)
    assert told is None or found.startswith(told)


def test_level_features_do_not_excuse_a_loss_that_rises():
    found = runs(WIDTHS)
    for run in found:
        run["losses"] = [5.5, 400.0] if run["width"] == 512 else [5.5, 5.4]
        run["diverged"] = risen(run["losses"], 256)
    result = judge(found, {(width, 2): width for width in WIDTHS.widths}, WIDTHS)
    assert result["verdict"] == "FAIL"
    assert "training diverges at width 512, depth 2, but not at the smallest size" in result["sentence"]
    assert result["diverged"][0].startswith("(512, 2) seed 1: step 2: the loss is 400; it was 5.5")


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
        ({"control_seeds": 1}, "--control_seeds is 1; expected at least 2"),
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
