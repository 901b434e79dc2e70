"""Law-fit error, robustness and asymptotic penalty of exact parabolas, by hand."""

import numpy as np
import pytest

from mup_lightning.studies.transfer.losses import read_losses
from mup_lightning.studies.transfer.report import text
from mup_lightning.studies.transfer.verdict import transfer
from tests.studies.tables import SIZES, curves, groups, report, write

OPTIMA = (-6.0, -6.6, -7.5, -6.4)
PREDICTED = -6.7 - 2 * 0.75  # the line through the first three has its mean at the second size, and slope -0.75


def test_exact_parabolas(tmp_path):
    """Curvature 0.04 everywhere: a power of two off costs 0.04 on the mean of both sides."""
    group = report(tmp_path, curves(SIZES, OPTIMA))
    residuals = np.linalg.lstsq(np.stack([np.ones(4), np.arange(4)], axis=1), np.array(OPTIMA), rcond=None)[1]
    assert group["law_fit_error"] == pytest.approx((residuals[0] / 4) ** 0.5)
    assert group["robustness"] == {str(size): pytest.approx(0.04) for size in SIZES}
    # The best value tried at the largest size is -6, off by 0.4.
    assert group["asymptotic_penalty"] == pytest.approx(0.04 * ((PREDICTED + 6.4) ** 2 - 0.4**2))


def test_the_penalty_is_against_the_best_parametrization(tmp_path):
    better = [(*row[:5], row[5] - 0.5) for row in curves(SIZES, (-7,) * 4, name="mup")]
    sp, mup = groups(write(tmp_path / "table.csv", [*curves(SIZES, OPTIMA, name="sp"), *better]))
    assert mup["asymptotic_penalty"] == pytest.approx(0)
    assert sp["asymptotic_penalty"] == pytest.approx(0.5 + 0.04 * (PREDICTED + 6.4) ** 2)


@pytest.mark.parametrize(
    ("optima", "lost", "error", "robust", "penalty", "printed"),
    [
        ((-7, -7.4), None, None, 0.04, 0.0, "law-fit error -, asymptotic penalty 0.000 nats"),
        ((-7.4, -7.4), None, None, 0.04, 0.0, "asymptotic penalty 0.000 nats"),
        ((-7, -7, -7, -9.6), None, True, None, 0.04 * (2.6**2 - 0.4**2), "asymptotic penalty 0.264 nats"),
        ((-7, -8, -9, -7), -10, True, 0.04, None, "asymptotic penalty diverges\n"),
        ((-7, -8.5, -9.8, -7), None, True, 0.04, None, "asymptotic penalty -\n"),
        ((-7, -7, -7, -7), -8, True, None, 0.0, "diverges\nlaw-fit error 0.000 powers of two"),
    ],
)
def test_what_was_lost_or_not_tried(tmp_path, optima, lost, error, robust, penalty, printed):
    rows = curves(SIZES[: len(optima)], optima)
    rows = [(*row[:5], "") if row[2] == SIZES[-1] and row[3] == lost else row for row in rows]
    group = report(tmp_path, rows)
    largest = list(group["robustness"].values())[-1]
    assert (group["law_fit_error"] is None) == (error is None)
    assert largest == (robust and pytest.approx(robust))
    assert group["asymptotic_penalty"] == (penalty if penalty is None else pytest.approx(penalty, abs=1e-9))
    assert printed in text(transfer(read_losses(tmp_path / "table.csv")))
