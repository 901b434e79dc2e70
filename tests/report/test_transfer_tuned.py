"""The transferred value: mean, uncertainty, drift and doubts, from tables with known answers."""

import numpy as np
import pytest

from mup_lightning.errors import UserError
from mup_lightning.report.transfer import transfer
from mup_lightning.report.transfer_tuned import tuned
from tests.report.tables import COLUMNS, curves, write


def carry(tmp_path, rows, target=(1024, 2), **options):
    return tuned(transfer(write(tmp_path / "t.csv", rows), **options), "recipe.lr", target)


def test_the_value_is_the_mean_and_the_drift_goes_on_to_the_target(tmp_path):
    optima = [-7.2, -7.1, -7.0]
    found = carry(tmp_path, curves((64, 128, 256), optima, noise=0.002, seeds=3))
    assert found.log2 == pytest.approx(np.mean(optima), abs=0.05)
    assert found.value == pytest.approx(2**-7.1, rel=0.04)
    (drift,) = found.drifts
    assert (drift.axis, drift.doublings) == ("width", 3.0)  # from 128 to 1024
    assert drift.moved == pytest.approx(0.3, abs=0.1)
    low, high = found.outer
    assert low < -6.8 < high
    assert high - low > 2 * found.half > 0
    assert found.warnings == ()


def test_doublings_are_counted_from_where_all_proxies_are(tmp_path):
    """Log2 of the best is -7 + 0.2 (log2 width - 6) + 0.1 (log2 depth - 1): width and depth cross at (64, 2)."""
    chance = np.random.default_rng(0)
    rows = [(*row, "", 2) for row in curves((64, 128, 256), (-7, -6.8, -6.6), noise=1e-4, seeds=2, chance=chance)]
    deep = curves((2, 4, 8, 16), (-7, -6.9, -6.8, -6.7), noise=1e-4, seeds=2, chance=chance)
    rows += [(row[0], "depth", *row[2:], 64, "") for row in deep]
    path = write(tmp_path / "t.csv", rows, (*COLUMNS, "width", "depth"))
    found = tuned(transfer(path), "recipe.lr", (1024, 32))
    assert {drift.axis: drift.doublings for drift in found.drifts} == {"width": 3.5, "depth": 3.25}
    # The value with its drifts is the truth at the target.
    assert found.log2 + sum(drift.moved for drift in found.drifts) == pytest.approx(-7 + 0.2 * 4 + 0.1 * 4, abs=0.02)


def test_two_sizes_of_one_seed_say_nothing_of_their_own_error(tmp_path):
    found = carry(tmp_path, curves((64, 128), (-7, -7)))
    assert found.half == np.inf
    assert any("two sizes of one seed" in warning for warning in found.warnings)


@pytest.mark.parametrize(
    ("sizes", "optima", "warning"),
    [
        ((64, 128, 256), (-5, -4, -3), "at width 128, 256 the best value is the last one tried"),
        ((64, 128, 256), (-7, -7.4, -7.8), "would be 2^-1.2 times this one"),
    ],
)
def test_doubts_are_named(tmp_path, sizes, optima, warning):
    found = carry(tmp_path, curves(sizes, optima, noise=0.001, seeds=2))
    assert any(warning in text for text in found.warnings), found.warnings


def test_sizes_that_do_not_pay_are_a_doubt(tmp_path):
    rows = [(*row[:5], row[5] + 0.2 * (row[2] == 256)) for row in curves((64, 128, 256), (-7, -7, -7))]
    (warning,) = carry(tmp_path, rows).warnings
    assert warning.startswith("width 256 is no better than 64 (loss 3.000 and 3.000)")


def test_nothing_to_carry_over(tmp_path):
    rows = [(*row[:5], "" if row[2] == 128 else row[5]) for row in curves((64, 128), (-7, -7))]
    with pytest.raises(UserError, match="fewer than two proxies"):
        carry(tmp_path, rows)
