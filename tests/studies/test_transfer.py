"""The transfer report from table to verdict, against numbers worked out by other means."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mup_lightning.cli.main import main
from mup_lightning.files import read_json
from mup_lightning.studies.transfer.losses import read_losses
from mup_lightning.studies.transfer.report import text, to_dict
from mup_lightning.studies.transfer.verdict import transfer
from tests.studies.tables import COLUMNS, SIZES, curves, judged, lose, report, write

OPTIMA = (-6.0, -6.6, -7.5, -6.4)
PREDICTED = -6.7 - 2 * 0.75  # the line through the first three has its mean at the second size, and slope -0.75


def test_exact_parabolas_give_their_own_optima_and_metrics(tmp_path):
    """Curvature 0.04 everywhere: a power of two off costs 0.04 on the mean of both sides."""
    group = report(tmp_path, curves(SIZES, OPTIMA))
    assert list(group["optimum"]) == ["64", "128", "256", "512"]
    assert list(group["optimum"].values()) == pytest.approx(OPTIMA)
    assert group["slope"] == pytest.approx(np.polyfit(np.log2(SIZES), OPTIMA, 1)[0])
    assert group["best_loss"]["512"] == pytest.approx(2.7 + 0.04 * 0.4**2)  # of -6, the best value tried
    assert (group["edge"], group["noise"]) == ([], None)
    assert group["plateau"] == {"256": [-8.0, -7.0]}  # equally far from the optimum
    assert group["regret"] == 0.0
    residuals = np.linalg.lstsq(np.stack([np.ones(4), np.arange(4)], axis=1), np.array(OPTIMA), rcond=None)[1]
    assert group["law_fit_error"] == pytest.approx((residuals[0] / 4) ** 0.5)
    assert group["robustness"] == {str(size): pytest.approx(0.04) for size in SIZES}
    assert group["asymptotic_penalty"] == pytest.approx(0.04 * ((PREDICTED + 6.4) ** 2 - 0.4**2))


def test_the_published_tables():
    """Optima, slopes and regrets by numpy alone."""
    file, laid = Path(__file__).parents[2] / "docs" / "results" / "published_losses.csv", 0
    report = to_dict(transfer(read_losses(file)))
    rows = pd.read_csv(file, dtype={"size": str, "layer_norm": str})
    keys = ["parametrization", "axis", "optimizer", "value", "layer_norm"]
    assert rows["table"].nunique() == rows.groupby(keys).ngroups == len(report["groups"]) == 16
    for key, table in rows.groupby(keys):
        (group,) = [group for group in report["groups"] if tuple(group[name] for name in keys) == key]
        losses = table.pivot(index="size", columns="log2_value", values="loss")  # nan: diverged
        grid = losses.columns.to_numpy()
        for size, own in zip(losses.index, losses.to_numpy(), strict=True):
            i = int(np.nanargmin(own))
            assert group["best_loss"][size] == own[i]
            around = own[max(0, i - 1) : i + 2]
            if len(around) == 3 and np.isfinite(around).all() and sum(own == own[i]) == 1:
                a, b, _ = np.polyfit(grid[i - 1 : i + 2], around, 2)
                assert group["optimum"][size] == pytest.approx(-b / (2 * a), abs=1e-6)
                laid += 1
        x = np.log2([int(size) for size in group["optimum"]])
        assert group["slope"] == pytest.approx(np.polyfit(x, list(group["optimum"].values()), 1)[0])
        smallest, largest = (end(losses.index, key=int) for end in (min, max))
        tuned = losses.loc[largest, group["best_value"][smallest]]
        assert group["regret"] == pytest.approx(tuned - losses.loc[largest].min())
    assert laid > 70
    comparison = next(own for own in report["comparisons"] if own["axis"] == "width" and own["value"] == "lr")
    assert comparison["best_loss"]["4096"] == {"SP": 3.516, "recipe, k ≥ 2": 3.446}


@pytest.mark.parametrize(
    ("optima", "bound", "beginning"),
    [
        ((-7, -8, -9, -11), "at most", "does not transfer: the best value falls by at least"),
        ((-11, -9, -8, -7), "at least", "does not transfer: the best value rises by at least"),
        (
            (-11, -11, -11, -11),
            "unknown",
            "cannot tell: at width 64, 128, 256, 512 the best value is the last one tried",
        ),
        ((-11, -10.6, -7, -5), "at least", "does not transfer"),
    ],
)
def test_optima_at_the_edge_of_the_grid_are_bounds(tmp_path, optima, bound, beginning):
    group = report(tmp_path, curves(SIZES, optima))
    assert group["edge"] == [str(s) for s, best in zip(SIZES, optima, strict=True) if best <= -10]
    assert group["slope_bound"] == bound
    assert group["verdict"].startswith(beginning)


@pytest.mark.parametrize(
    ("regret", "noise", "beginning"),
    [
        (0.029, None, "cannot tell: the regret may be noise: more seeds"),
        (0.029, 0.001, "does not transfer: what is best at width 64 costs 0.029 (±0.003) nats at width 512; slope"),
        (0.029, 0.01, "cannot tell: the regret may be noise: more seeds"),
        # (0.12 - 0.02) / (1.96 x sqrt 2) = 0.036
        (0.12, None, "does not transfer: what is best at width 64 costs 0.120 nats at width 512 (unless seeds differ "
         "by 0.036); slope"),
    ],
)  # fmt: skip
def test_one_seed_proves_no_small_regret(tmp_path, regret, noise, beginning):
    """All optima at -7 but for a tooth at the largest size: its -7 is above its -6 and -8, its parabola stays put."""
    rows = [
        (*row[:5], row[5] + regret + 0.04 * (row[3] == -8)) if row[2] == 512 and row[3] == -7 else row
        for row in curves(SIZES, (-7,) * 4, curvature=0.5)
    ]
    rows = [(*row[:5], 2.7) if row[2] == 512 and row[3] == -8 else row for row in rows]
    # The tooth moves the optimum too, which is not the question here.
    group = report(tmp_path, rows, slope_tolerance=1.0, noise=noise)
    assert group["regret"] == pytest.approx(regret)
    assert group["verdict"].startswith(beginning), group["verdict"]


def test_a_drift_to_the_edge_hides_its_cost(tmp_path, capsys):
    rows = curves(SIZES, (-5.3, -5.0, -4.7, -3.9), curvature=0.004)  # the grid ends at -4
    group = report(tmp_path, rows)
    assert group["edge"] == ["512"]
    assert group["regret_at_least"]
    assert group["verdict"].startswith("cannot tell: the best value rises by at least")
    assert "at width 512 the best value is the last one tried, so widen the grid; slope" in group["verdict"]
    assert "regret ≥ 0.005" in group["verdict"]
    assert main(["report", "transfer", str(tmp_path / "table.csv"), "--markdown"]) == 0
    assert "| ≥ 0.005 |" in capsys.readouterr().out


def test_a_sweeps_columns_tell_groups_apart(tmp_path):
    columns = (*COLUMNS, "optimizer", "branch_depth", "value", "width", "depth", "model.layer_norm", "recipe.lr",
               "seconds", "stopped", "steps", "corpus", "config_hash")  # fmt: skip
    rows = []
    for norm in (True, False):
        for n, (name, k) in enumerate((("sp", ""), ("mup", 1), ("mup", 2))):
            for row in curves((64, 128), (-7 - n, -7), name=name, noise=0.001, seeds=2):
                more = ("adamw", k, "recipe.lr", row[2], 2, norm, 2.0 ** row[3], row[5], "", 60, "c", f"{norm}{n}{row}")
                rows.append((*row, *more))
    rows[0] = (*rows[0][:5], "", *rows[0][6:15], 20, "c", "x")
    found, comparisons = to_dict(judged(tmp_path, rows, columns)).values()
    labels = [(g["label"], g["model.layer_norm"], g["depth"], g["steps"]) for g in found]
    names = ("SP", "recipe, k ≥ 2", "recipe, k = 1")  # in this order, whatever the table's is
    assert labels == [(name, norm, "2", 60) for norm in ("True", "False") for name in names]
    assert found[0]["diverged"] == {"64": [-10.0]}
    assert len(comparisons) == 2
    runs = read_losses(tmp_path / "table.csv")
    assert {one.label for one in transfer(runs[runs["parametrization"] == "sp"])} == {"SP"}


@pytest.mark.filterwarnings("error:constrained_layout")  # the panels have collapsed
def test_the_three_forms_of_output(tmp_path, capsys):
    still = curves(SIZES, (-7, -7.002, -7.004, -7.006))  # a slope that rounds to nothing has no sign of falling
    path = str(write(tmp_path / "t.csv", [*curves(SIZES, (-6, -7, -8, -9), name="sp"), *still]))
    out = tmp_path / "out"
    assert main(["report", "transfer", path, "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "SP: does not transfer: the best value falls by 1.00 powers of two for each doubling of the width" in text
    assert "recipe: transfers: slope +0.00 [+0.00, +0.00], regret 0.000, noise unknown (one seed)" in text
    assert "512    2.700  2.700" in text.replace(" (+0.000)", "")
    assert (out / "transfer_width.png").stat().st_size > 20_000
    assert main(["report", "transfer", path, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == read_json(out / "transfer.json", "a report")
    assert main(["report", "transfer", path, "--markdown"]) == 0
    assert "| **SP** | -6.00 | -7.00 | -8.00 | -9.00 | -1.00 [" in capsys.readouterr().out


def test_a_tie_at_the_smallest_size_proves_no_failure(tmp_path):
    """2^-5 and 2^-4 tie at width 64 by 0.003 of a noise of 0.01; at width 512 the one costs nothing, the other 0.08."""
    small, large = {-6: 2.1, -5: 2.003, -4: 2.0, -3: 2.1}, {-6: 2.08, -5: 2.0, -4: 2.08, -3: 2.3}
    shifts = {-6: (0, 0.01, -0.01), -5: (0.01, -0.01, 0), -4: (-0.01, 0, 0.01), -3: (0, -0.01, 0.01)}
    rows = [
        ("mup", "width", size, value, seed, loss + shifts[value][seed])
        for size in SIZES
        for value, loss in (small if size == 64 else large).items()
        for seed in range(3)
    ]
    group = report(tmp_path, rows)
    assert group["regret"] == pytest.approx(0.08)
    tie = "cannot tell: 2^-5, which ties with 2^-4 at width 64, costs 0.000 nats at width 512: more seeds at width 64"
    assert group["verdict"].startswith(f"{tie}; the slope is too uncertain")
    lost = lose(rows, lambda size, value, seed: size == 512 and value == -4)
    assert report(tmp_path, lost)["verdict"].startswith(tie)
    other = [(*row[:5], row[5] - 0.006) if row[2] == 64 and row[3] == -5 else row for row in rows]
    verdict = report(tmp_path, other)["verdict"]
    assert verdict.endswith("(2^-4, which ties with 2^-5 at width 64, costs 0.080 nats at width 512)")
    surely = [(*row[:5], row[5] + 0.1) if row[2] == 64 and row[3] == -5 else row for row in rows]
    assert report(tmp_path, surely)["verdict"].startswith("does not transfer: what is best at width 64 costs 0.080 (")


@pytest.mark.parametrize("steeper", [1, 3])
def test_the_interval_of_an_optimum_holds_it_though_curves_lean(tmp_path, steeper):
    """Exact to 0.001 nats, wherever the optimum lies between the values tried; the slope is not wider for it."""
    chance, inside, slopes = np.random.default_rng(5), 0, []
    for best in np.arange(-7.5, -6.5, 0.05):
        rows = [
            (*row[:5], row[5] + (steeper - 1) * 0.04 * max(0.0, row[3] - best) ** 2)
            for row in curves((64, 128), (best, best), noise=0.001, seeds=3, chance=chance)
        ]
        found = judged(tmp_path, rows)
        (group,) = to_dict(found)["groups"]
        inside += sum(low <= best <= high for low, high in group["optimum_ci"].values())
        assert "± 0.15" in text(found)
        slopes.append(group["slope_ci"])
    assert inside >= 38  # of 40
    assert sum(low <= 0 <= high for low, high in slopes) >= 18  # of 20
    assert np.median([high - low for low, high in slopes]) < 0.15


@pytest.mark.parametrize("optima", [(-11, -9.3, -8.9, -8), (-7, -7.2, -7.1, -7.6)])
def test_one_seed_has_no_narrower_interval_than_a_regression(tmp_path, optima):
    """Optima at an edge too; numpy's line, and t with two degrees of freedom from a printed table."""
    group = report(tmp_path, curves(SIZES, optima))
    found = [group["optimum"][str(size)] for size in SIZES]
    (slope, _), ((variance, _), _) = np.polyfit(np.log2(SIZES), found, 1, cov=True)
    low, high = group["slope_ci"]
    assert group["slope"] == pytest.approx(slope)
    assert high - low >= 2 * 4.3027 * np.sqrt(variance) * (1 - 1e-4)
    if not group["edge"]:
        assert high - low == pytest.approx(2 * 4.3027 * np.sqrt(variance), rel=1e-4)
    two = [row for row in curves(SIZES, (-11, -3, -7, -7)) if row[2] < 256]  # both at an edge
    assert report(tmp_path, two)["slope_ci"] is None


def test_shapes_of_one_size_are_not_taken_for_each_other(tmp_path):
    """64x4 and 128x2 lie at the same place of the axis `both`; losses are compared at equal shape alone."""
    shapes = {"sp": ("32x2", "64x4"), "mup": ("32x2", "128x2")}
    rows = [
        (name, "both", size, value, 0, 3.0 + abs(value + 7) - 0.5 * (size != "32x2"))
        for name, sizes in shapes.items()
        for size in sizes
        for value in (-8, -7, -6)
    ]
    (comparison,) = to_dict(judged(tmp_path, rows, noise=0.01))["comparisons"]
    assert {size: set(losses.values()) for size, losses in comparison["best_loss"].items()} == {
        "32x2": {3.0},
        "64x4": {2.5, None},
        "128x2": {2.5, None},
    }


@pytest.mark.parametrize(
    ("lost", "expected", "verdict"),
    [
        (lambda size, value, seed: size == 512 and value >= -8,
         {"regret": None, "regret_infinite": True, "no_regret_because": {"512": "diverged"}, "cliff": ["512"]},
         ("does not transfer: ", "what is best at width 64 diverges at width 512; ")),
        (lambda size, value, seed: size == 512 and value == -7 and seed == 1,  # one seed loses the value
         {"regret_infinite": True, "diverged": {"512": [-7.0]}}, ("does not transfer: ", "diverges at width 512; ")),
        (lambda size, value, seed: size == 512, {"regret_infinite": True},
         ("does not transfer: ", "every value that was tried diverged at width 512; ")),
        (lambda size, value, seed: size == 64,
         {"regret": None, "regret_infinite": False, "no_regret_because": dict.fromkeys(map(str, SIZES), "untuned")},
         ("cannot tell: ", "; nothing trained at width 64; slope")),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("error:constrained_layout")
def test_lost_values(tmp_path, lost, expected, verdict):
    rows = curves(SIZES, (-7, -7.5, -8, -8.5), noise=0.001, seeds=2)
    group = report(tmp_path, lose(rows, lost))
    assert {key: group[key] for key in expected} == expected
    assert group["verdict"].startswith(verdict[0])
    assert verdict[1] in group["verdict"]
    assert main(["report", "transfer", str(tmp_path / "table.csv"), "--out", str(tmp_path / "out")]) == 0


def test_sizes_of_all_kinds(tmp_path):
    """One in a group alone; width and depth at once, where each doubles by half of a doubling of both."""
    rows = [(n, "both", f"{s}x{s // 32}", *rest) for n, _, s, *rest in curves((64, 128, 256), (-7, -7.1, -7.2))]
    sp, both = judged(tmp_path, [*curves((64,), (-7,), name="sp"), *rows])
    assert sp.verdict.startswith("cannot tell: fewer than two sizes trained; ")
    assert sp.slope is None
    assert both.slope.slope == pytest.approx(-0.1)


def test_the_penalty_is_against_the_best_parametrization(tmp_path):
    better = [(*row[:5], row[5] - 0.5) for row in curves(SIZES, (-7,) * 4, name="mup")]
    family = judged(tmp_path, [*curves(SIZES, OPTIMA, name="sp"), *better])
    assert [one.penalty(family) for one in family] == pytest.approx([0.5 + 0.04 * (PREDICTED + 6.4) ** 2, 0])


@pytest.mark.parametrize(
    ("optima", "lost", "robust", "penalty", "printed"),
    [
        ((-7, -7.4), None, 0.04, 0.0, "law-fit error -, asymptotic penalty 0.000 nats"),
        ((-7.4, -7.4), None, 0.04, 0.0, "law-fit error -, asymptotic penalty 0.000 nats"),
        ((-7, -7, -7, -9.6), None, None, 0.04 * (2.6**2 - 0.4**2), " powers of two, asymptotic penalty 0.264 nats"),
        ((-7, -8, -9, -7), -10, 0.04, None, " powers of two, asymptotic penalty diverges\n"),
        ((-7, -8.5, -9.8, -7), None, 0.04, None, " powers of two, asymptotic penalty -\n"),
        ((-7, -7, -7, -7), -8, None, 0.0, "diverges\nlaw-fit error 0.000 powers of two"),
    ],
)
def test_the_metrics_of_what_was_lost_or_not_tried(tmp_path, optima, lost, robust, penalty, printed):
    rows = curves(SIZES[: len(optima)], optima)
    found = judged(tmp_path, lose(rows, lambda size, value, seed: size == SIZES[-1] and value == lost))
    (group,) = to_dict(found)["groups"]
    largest = list(group["robustness"].values())[-1]
    assert largest == (robust and pytest.approx(robust))
    assert group["asymptotic_penalty"] == (penalty if penalty is None else pytest.approx(penalty, abs=1e-9))
    assert printed in text(found)
