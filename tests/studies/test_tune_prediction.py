"""The transferred value: mean, uncertainty, drift and caveats, from tables with known answers."""

import numpy as np
import pytest

from mup_lightning.errors import UserError
from mup_lightning.studies.tune.tune import predict
from tests.studies.tables import COLUMNS, curves, judged, lose

SIDES = (*COLUMNS, "width", "depth")


def carry(tmp_path, rows, target=(1024, 2)):
    """The prediction from rows, which may have a width and a depth after the columns that every table has."""
    return predict(judged(tmp_path, rows, SIDES[: len(rows[0])]), "recipe.lr", target)


def cross(wide, deep, **options):
    """Rows of widths at depth 2 and of depths at width 64, by their optima; a size without one has no loss."""
    rows = []
    for axis, optima, fixed in (("width", wide, ("", 2)), ("depth", deep, (64, ""))):
        for row in curves(list(optima), [-7 if best is None else best for best in optima.values()], **options):
            loss = "" if optima[row[2]] is None else row[5]
            rows.append((row[0], axis, *row[2:5], loss, *fixed))
    return rows


def test_the_value_is_the_mean_and_the_drift_goes_on_to_the_target(tmp_path):
    optima = [-7.2, -7.1, -7.0]
    found = carry(tmp_path, curves((64, 128, 256), optima, noise=0.002, seeds=3))
    assert found.log2 == pytest.approx(np.mean(optima), abs=0.05)
    assert found.value == pytest.approx(2**-7.1, rel=0.04)
    (drift,) = found.drifts
    assert (drift.axis, drift.doublings) == ("width", 3.0)  # from 128 to 1024
    assert drift.shift[0] == pytest.approx(0.3, abs=0.1)
    low, high = found.at_target
    assert low < -6.8 < high
    assert high - low > 2 * found.half_width > 2 * 0.29  # 1.96 x 0.15 steps of the grid at least
    assert found.caveats == []


def test_doublings_are_counted_from_where_all_proxies_are(tmp_path):
    """Log2 of the best is -7 + 0.2 (log2 width - 6) + 0.1 (log2 depth - 1): width and depth cross at (64, 2)."""
    wide, deep = {64: -7, 128: -6.8, 256: -6.6}, {2: -7, 4: -6.9, 8: -6.8, 16: -6.7}
    found = carry(tmp_path, cross(wide, deep, noise=1e-4, seeds=2), (1024, 32))
    assert {drift.axis: drift.doublings for drift in found.drifts} == {"width": 3.5, "depth": 3.25}
    # The value with its drifts is the truth at the target.
    assert found.log2 + sum(drift.shift[0] for drift in found.drifts) == pytest.approx(-7 + 0.2 * 4 + 0.1 * 4, abs=0.02)


@pytest.mark.parametrize(
    ("sizes", "optima", "warning"),
    [
        ((64, 128, 256), (-5, -4, -3), "at width 128, 256 the best value is the last one tried, or cannot be told"),
        ((64, 128, 256), (-7, -7, -4.52), "at width 256 the best value is the last one tried, or cannot be told from"),
        ((64, 128, 256), (-7, -7.4, -7.8), "would be 2^-1.2 times this one"),
    ],
)
def test_caveats_are_named(tmp_path, sizes, optima, warning):
    found = carry(tmp_path, curves(sizes, optima, noise=0.001, seeds=2))
    assert any(warning in text for text in found.caveats), found.caveats


def test_what_says_little(tmp_path):
    """Two sizes of one seed; a size that does not pay; one size alone."""
    found = carry(tmp_path, curves((64, 128), (-7, -7)))
    assert found.half_width == np.inf
    assert any("the slope is too uncertain" in warning for warning in found.caveats)
    rows = [(*row[:5], row[5] + 0.2 * (row[2] == 256)) for row in curves((64, 128, 256), (-7, -7, -7))]
    (warning,) = carry(tmp_path, rows).caveats
    assert warning.startswith("width 256 is no better than 64: ")
    with pytest.raises(UserError, match="fewer than two proxies"):
        carry(tmp_path, lose(curves((64, 128), (-7, -7)), lambda size, value, seed: size == 128))


def test_an_axis_on_which_one_size_trained_is_heard(tmp_path):
    rows = cross({64: -7, 128: None, 256: None}, {2: -7, 4: -7, 8: -7}, noise=0.001, seeds=2)
    failed, unknown = carry(tmp_path, rows, (2048, 4)).caveats
    assert failed.startswith("over width at depth 2: does not transfer: every value that was tried diverged at")
    assert unknown.startswith("width was not varied among the proxies that trained (64; the target has 2048): nothing")
    assert carry(tmp_path, rows, (64, 4)).caveats == [failed]  # of the width that trained: nothing to carry over


@pytest.mark.parametrize(("target", "axis"), [((2048, 4), "width"), ((64, 16), None), ((32, 8), "width")])
def test_a_side_of_the_target_that_no_proxy_varied_is_named(tmp_path, target, axis):
    found = carry(tmp_path, cross({}, {2: -7, 4: -7, 8: -7}, noise=0.001, seeds=2), target).caveats
    assert [text.split()[0] for text in found if "was not varied" in text] == ([axis] if axis else [])


def at_depths(slopes):
    """Three widths at several depths, -7 at width 64, with a slope for each depth."""
    rows = []
    for depth, slope in slopes.items():
        chance = np.random.default_rng(depth)
        optima = [-7 + slope * i for i in range(3)]
        rows += [(*row, "", depth) for row in curves((64, 128, 256), optima, noise=0.001, seeds=3, chance=chance)]
    return rows


@pytest.mark.parametrize("depths", [(2,), (2, 4, 8)])
def test_groups_of_one_axis_are_one_drift(tmp_path, depths):
    """From width 128, where the best is 2^-7.3, to 2048: four doublings at -0.3."""
    found = carry(tmp_path, at_depths(dict.fromkeys(depths, -0.3)), (2048, 4))
    (drift,) = found.drifts
    assert drift.shift[0] == pytest.approx(-1.2, abs=0.1)
    low, high = found.at_target
    assert low < -8.5 < high
    assert high - low < 1.2
    assert sum("if the measured drift over width went on" in text for text in found.caveats) == 1
    assert found.text((256, 4), (2048, 4)).count("\n  drift over width ") == 1
    over = [text.partition(":")[0] for text in found.caveats if text.startswith("over ")]
    assert over == [f"over width at depth {depth}" for depth in depths]


def test_groups_of_one_axis_that_disagree_leave_the_drift_uncertain(tmp_path):
    (drift,) = carry(tmp_path, at_depths({2: -0.3, 4: 0.1}), (2048, 4)).drifts
    assert drift.slope[0] == pytest.approx(-0.1, abs=0.02)
    _, low, high = drift.slope
    assert low < -0.3 < 0.1 < high
    assert drift.shift[1:] == pytest.approx((4 * low, 4 * high))


def test_what_grows_with_both_is_no_third_drift(tmp_path):
    rows = cross({64: -7, 128: -7.2, 256: -7.4}, {2: -7, 4: -7.1, 8: -7.2}, noise=0.001, seeds=2)
    both = curves(("64x2", "128x4", "256x8"), (-7, -7.3, -7.6), noise=0.001, seeds=2)
    rows += [(row[0], "both", *row[2:], "", "") for row in both]
    assert [drift.axis for drift in carry(tmp_path, rows, (1024, 16)).drifts] == ["width", "depth"]
    alone = [row for row in rows if row[1] != "depth"]
    assert [drift.axis for drift in carry(tmp_path, alone, (1024, 16)).drifts] == ["both"]
    (drift,) = carry(tmp_path, [row for row in rows if row[1] == "both"], (1024, 32)).drifts
    assert (drift.axis, drift.doublings) == ("both", 3.0)


@pytest.mark.parametrize(
    ("optima", "shown", "own"),
    [
        ((-5, -4.6, -3), "unknown: at some sizes", ""),
        ((-7, -7, -7), "between 2^", "2^-7.00, inside that range: as good, for all these runs can tell"),
        ((-9, -9, -9), "between 2^", "2^-7.00, outside that range"),
    ],
)
def test_the_ranges_and_the_value_that_the_target_has(tmp_path, optima, shown, own):
    lines = carry(tmp_path, curves((64, 128, 256), optima, 0.001, seeds=2)).text((256, 4), (1024, 2), 2**-7).split("\n")
    for start in ("  at the proxies", "  at (1024, 2)"):
        (line,) = (line for line in lines if line.startswith(start))
        assert f" best {shown}" in line
    assert [line.split("now  ")[1] for line in lines if "has now" in line] == ([own] if own else [])
