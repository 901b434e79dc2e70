"""From norms to a verdict, on numbers whose exponents are known."""

import numpy as np
import pytest

from mup_lightning.errors import UserError
from mup_lightning.studies.coordinates.measure import features, rise
from mup_lightning.studies.coordinates.settings import CheckSettings
from mup_lightning.studies.fit import fit
from tests.studies.coordinate_runs import judged

WIDTHS = CheckSettings(widths=[64, 128, 256, 512], seeds=3)
DEPTHS = CheckSettings(axis="depth", depths=[2, 4, 8, 16], seeds=3)
BOTH = CheckSettings(axis="both", ratios=[1.0, 2.0, 4.0], seeds=3)


def test_the_interval_holds_the_truth_in_19_of_20_cases_also_where_small_models_are_noisier():
    """Three times the noise at the smallest size, which also belongs to the farthest point of the line."""
    chance, sizes = np.random.default_rng(1), [16.0, 32.0, 64.0]
    noise = np.array([0.3, 0.1, 0.1])
    fits = [fit(sizes, np.exp(chance.normal(0, noise, (3, 3))).tolist()) for _ in range(2000)]
    inside = np.mean([one.low <= 0 <= one.high for one in fits])
    assert 0.935 < inside < 0.965  # the binomial deviation is 0.005; the scatter of all points comes to 0.91


def test_level_features_pass():
    found = judged(WIDTHS)
    assert found.verdict == "PASS"
    assert found.sentence.startswith("no exponent leaves its band; the nearest to its edge is ")
    assert len(found.exponents) == 15 * 3  # 3 single features, 3 points at 4 places


@pytest.mark.parametrize(
    ("point", "kind", "power", "words"),
    [
        ("logits", "norms", 0.3, "logits, after the last step, grows as n^+0.3"),
        ("logits", "norms", -0.3, "logits, after the last step, shrinks as n^-0.3"),
        ("mlp", "changes", 0.5, "its change after the last step, grows as n^+0.5"),
        ("attention", "changes", -0.5, "its change after the last step, shrinks as n^-0.5"),
        ("mlp", "changes", -2000.0, "its change after the last step, is zero"),  # below the smallest float
    ],
)
def test_growth_and_vanishing_fail_by_name(point, kind, power, words):
    found = judged(WIDTHS, {(point, kind): power})
    assert found.verdict == "FAIL"
    assert found.worst[0].split(",")[0] == point
    assert words in found.sentence
    assert {one.label[0].split(",")[0] for one in found.exponents if one.verdict == "FAIL"} == {point}


def test_noise_is_unclear():
    found = judged(WIDTHS, noise=0.1)
    assert found.verdict == "UNCLEAR"
    assert "more --seeds" in found.sentence


def test_thresholds_are_options():
    exponents = {("logits", "norms"): 0.2}
    assert judged(WIDTHS, exponents).verdict == "FAIL"
    assert judged(CheckSettings(widths=WIDTHS.widths, seeds=3, feature_band=0.3), exponents).verdict == "PASS"


@pytest.mark.parametrize(
    ("settings", "point", "power", "layer_norm", "verdict"),
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
        (DEPTHS, "mlp", -0.5, False, "FAIL"),  # the first block receives the embedding
        (BOTH, "logits", -1.0, True, "FAIL"),
        (BOTH, "logits", -1.0, False, "PASS"),
    ],
)
def test_at_initialisation_only_sums_of_random_terms_may_shrink(settings, point, power, layer_norm, verdict):
    found = judged(settings, {(point, "init"): power}, layer_norm=layer_norm)
    assert found.verdict == verdict
    if verdict == "FAIL":
        assert (found.worst[0].split(",")[0], found.worst[1]) == (point, "init")


def test_of_several_faults_the_first_is_named():
    """What training makes of a wrong start is larger, but follows from it."""
    assert judged(WIDTHS, {("mlp", "norms"): 3.0, ("embedding", "init"): 0.5}).worst == ("embedding", "init")


def test_divergence_of_the_smallest_model_is_unclear_and_of_a_larger_one_fails():
    found = judged(WIDTHS, diverged=[(64, 2), (512, 2)])
    assert found.verdict == "UNCLEAR"
    assert "diverges at the smallest size already, width 64 and depth 2" in found.sentence
    assert found.exponents == []  # two sizes are left: no line

    found = judged(WIDTHS, diverged=[(512, 2)])
    assert found.verdict == "FAIL"
    assert "diverges at width 512, depth 2, but not at the smallest" in found.sentence
    assert found.diverged[0] == "(512, 2) seed 1: step 1: the loss is nan"
    assert found.exponents  # of the three sizes that are left


@pytest.mark.parametrize(
    ("losses", "told"),
    [
        ([5.5, 400.0], "step 2: the loss is 400; it was 5.5 in step 1, and a uniform guess has 5.545"),
        ([5.5, 5.4, 6.6], "step 3: the loss is 6.6"),
        ([5.5, 6.4, 5.0], None),  # a nat is not much in a first step
        ([5.7, 6.6], "step 2: the loss is 6.6"),  # more than a nat above ln V
        ([4.0, 5.1], "step 2: the loss is 5.1"),  # below ln V, but a nat is lost
        ([9.0, 8.0, 7.0], None),  # a bad start that improves
        ([9.0, 9.1], "step 2: the loss is 9.1"),
        ([5.5], None),
        ([], None),
    ],
)
def test_a_loss_that_rises_has_diverged_though_it_is_finite(losses, told):
    found = rise(losses, 256)
    assert (found is None) == (told is None)
    assert told is None or found.startswith(told)


def test_blocks_are_compared_at_equal_fractions_of_the_depth():
    assert "residual, first block" in features("width", 4)
    assert "residual, first block" not in features("depth", 4)  # 1/L of the way
    assert [features("depth", n)["residual, middle block"] for n in (2, 8)] == [["residual/0"], ["residual/3"]]
    assert [features("depth", n)["mlp, middle block"] for n in (2, 8)] == [["mlp/1"], ["mlp/4"]]
    assert features("depth", 8)["mlp, last block"] == ["mlp/7"]
    assert features("depth", 3)["mlp, largest"] == ["mlp/0", "mlp/1", "mlp/2"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"widths": [64, 128]}, r"--widths is \[64, 128\]; expected at least three numbers"),
        ({"depths": [8, 4, 2]}, r"--depths is \[8, 4, 2\]; .* from small to large"),
        ({"ratios": [0.0, 1.0, 2.0]}, "--ratios is .* above 0"),
        ({"seeds": 1}, "--seeds is 1; expected a whole number of at least 2"),
        ({"control_seeds": 1}, "--control-seeds is 1; expected a whole number of at least 2"),
        ({"change_band": 0.0}, "--change-band is 0.0; expected a finite number above 0"),
        ({"workers": -1}, "--workers is -1; expected"),
    ],
)
def test_impossible_settings_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        CheckSettings(**values)


def test_ratios_make_whole_sizes():
    settings = CheckSettings(axis="both", ratios=[1.0, 1.5, 2.0])
    assert list(settings.sizes(64, 2)) == [(64, 2), (96, 3), (128, 4)]
    with pytest.raises(UserError, match=r"--ratios: 1\.5 times width 64 and depth 1 are not whole numbers"):
        settings.sizes(64, 1)
