"""The transfer report from table to verdict, against numbers worked out by other means."""

import json

import numpy as np
import pytest

from mup_lightning.cli.main import main
from mup_lightning.report.transfer import as_plain, transfer
from mup_lightning.report.transfer_verdict import Tolerance
from tests.report.tables import COLUMNS, PUBLISHED, curves, published, write

SIZES = (64, 128, 256, 512)


def groups(path, **options):
    return as_plain(transfer(path, **options))["groups"]


def report(tmp_path, rows, **options):
    (group,) = groups(write(tmp_path / "table.csv", rows), **options)
    return group


def test_exact_parabolas_give_their_own_optima(tmp_path):
    optima = [-7.3, -7.2, -7.15, -7.05]
    group = report(tmp_path, curves(SIZES, optima))
    assert list(group["optimum"]) == ["64", "128", "256", "512"]
    assert list(group["optimum"].values()) == pytest.approx(optima)
    assert group["slope"] == pytest.approx(np.polyfit(np.log2(SIZES), optima, 1)[0])
    assert group["best_loss"]["512"] == pytest.approx(2.7 + 0.04 * 0.05**2)
    assert (group["edge"], group["plateau"], group["noise"]) == ([], {}, None)
    assert group["regret"] == 0.0
    assert group["verdict"].startswith("transfers: slope +0.08 [")


def test_the_interval_of_one_seed_is_that_of_a_regression(tmp_path):
    optima = np.array([-7.3, -6.9, -7.4, -7.0])
    group = report(tmp_path, curves(SIZES, optima))
    x = np.log2(SIZES)
    (slope, _), covariance = np.polyfit(x, optima, 1, cov=True)
    half = 4.30265 * np.sqrt(covariance[0, 0])  # Student's t of 2 degrees of freedom, as printed
    assert group["slope_ci"] == pytest.approx([slope - half, slope + half], rel=1e-4)
    assert group["verdict"].startswith("cannot tell: the slope is too uncertain")


def test_the_published_tables(tmp_path):
    """The slopes and regrets by numpy alone."""
    file = tmp_path / "published.json"
    file.write_text(json.dumps(published()))
    sp, recipe, no_norm = groups(file)
    for group, name in ((sp, "SP"), (recipe, "muP k>=2")):
        losses = PUBLISHED[name]
        optima = []
        for found in losses.values():
            i = int(np.argmin(found))
            a, b, _ = np.polyfit(np.arange(i - 1, i + 2) - 10, found[i - 1 : i + 2], 2)
            optima.append(-b / (2 * a))
        assert list(group["optimum"].values()) == pytest.approx(optima, abs=1e-6)
        assert group["slope"] == pytest.approx(np.polyfit(np.log2([int(s) for s in losses]), optima, 1)[0])
        tuned = int(np.argmin(losses["128"]))
        assert group["regret"] == pytest.approx(losses["4096"][tuned] - min(losses["4096"]))
        assert group["best_loss"] == {size: min(found) for size, found in losses.items()}
    assert sp["verdict"].startswith("does not transfer: the best value falls by 0.63 powers of two for each doubling")
    assert recipe["verdict"].startswith("drifts: the best value falls by 0.19 powers of two")
    assert no_norm["layer_norm"] == "False"
    assert no_norm["cliff"] == ["8"]
    assert no_norm["diverged"] == {"8": [-9.0]}
    assert no_norm["optimum"]["8"] == -10.0
    comparison = as_plain(transfer(file))["comparisons"]
    assert [c["axis"] for c in comparison] == ["width"]
    assert comparison[0]["best_loss"]["4096"] == {"SP": 3.516, "recipe, k ≥ 2": 3.446}


def test_a_transferred_value_that_diverges_has_no_finite_regret(tmp_path):
    rows = [(*row[:5], "") if row[2] == 512 and row[3] >= -7 else row for row in curves(SIZES, (-7, -7.5, -8, -8.5))]
    group = report(tmp_path, rows)
    assert (group["regret"], group["regret_infinite"]) == (None, True)
    assert group["no_regret_because"] == {"512": "diverged"}
    assert "what is best at width 64 diverges at width 512" in group["verdict"]
    assert group["verdict"].startswith("does not transfer")


def test_a_size_where_nothing_trains(tmp_path):
    rows = [(*row[:5], "nan") if row[2] == 512 else row for row in curves(SIZES, (-7, -7, -7, -7))]
    group = report(tmp_path, rows)
    assert group["optimum"]["512"] is None
    assert "every value that was tried diverged or was stopped at width 512" in group["verdict"]


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
        (0.029, None, "cannot tell: the regret is above 0.02, but one seed does not tell whether by noise"),
        (0.029, 0.001, "does not transfer: what is best at width 64 costs 0.029 nats at width 512; slope"),
        (0.029, 0.01, "cannot tell: the regret is above 0.02, but within the noise: more seeds"),
        # (0.12 - 0.02) / (1.96 x sqrt 2) = 0.036
        (0.12, None, "does not transfer: what is best at width 64 costs 0.120 nats at width 512 (unless seeds differ "
         "by 0.036 or more); slope"),
    ],
)  # fmt: skip
def test_one_seed_proves_no_small_regret(tmp_path, regret, noise, beginning):
    """All optima at -7 but for a tooth at the largest size: its -7 is above its -6 and -8, its parabola stays put."""
    rows = [
        (*row[:5], row[5] + regret + 0.04 * (row[3] == -8)) if row[2] == 512 and row[3] == -7 else row
        for row in curves(SIZES, (-7,) * 4, curvature=0.5)
    ]
    rows = [(*row[:5], 2.7) if row[2] == 512 and row[3] == -8 else row for row in rows]
    assert report(tmp_path, rows, noise=noise)["regret"] == pytest.approx(regret)
    tolerance = Tolerance(slope=1.0, regret=0.02)  # the tooth moves the optimum too, which is not the question here
    (found,) = transfer(tmp_path / "table.csv", tolerance, noise=noise)
    assert found.verdict.startswith(beginning), found.verdict


def test_a_drift_to_the_edge_hides_its_cost(tmp_path, capsys):
    rows = curves(SIZES, (-5.3, -5.0, -4.7, -3.9), curvature=0.004)  # the grid ends at -4
    group = report(tmp_path, rows)
    assert group["edge"] == ["512"]
    assert group["regret_at_least"]
    assert group["verdict"].startswith("cannot tell: the best value rises by at least")
    assert "at width 512 the best value is the last one tried, so widen the grid; slope" in group["verdict"]
    assert "regret at least 0.005 nats" in group["verdict"]
    assert main(["report", "transfer", str(tmp_path / "table.csv"), "--markdown"]) == 0
    assert "| ≥ 0.005 |" in capsys.readouterr().out


def test_ties_within_the_noise_are_a_plateau(tmp_path):
    rows = [
        ("mup", "width", size, value, seed, 3 + heights[value + 9] + off)
        for size, heights in ((64, (0.1, 0.002, 0.0, 0.003, 0.1)), (128, (0.2, 0.1, 0.0, 0.1, 0.2)))
        for value in range(-9, -4)
        for seed, off in enumerate(np.roll((-0.01, 0.0, 0.01), value))  # another seed's luck at every value
    ]
    group = report(tmp_path, rows)
    assert group["noise"] == pytest.approx(0.01)
    assert group["noise_paired"] == pytest.approx(0.01, rel=0.25)
    assert group["plateau"] == {"64": [-8.0, -7.0, -6.0]}
    # Five points, weighted: the middle of a flat bottom that leans neither way.
    assert group["optimum"]["64"] == pytest.approx(-7.0, abs=0.05)
    low, high = group["optimum_ci"]["64"]
    assert high - low > 4 * (group["optimum_ci"]["128"][1] - group["optimum_ci"]["128"][0])


def test_the_interval_holds_the_true_slope_in_about_19_of_20_tables(tmp_path):
    chance = np.random.default_rng(1)
    inside, narrow = 0, 0
    for _ in range(80):
        optima = [-7.2 - 0.1 * i for i in range(4)]
        group = report(tmp_path, curves(SIZES, optima, noise=0.01, seeds=3, chance=chance))
        low, high = group["slope_ci"]
        inside += low <= -0.1 <= high
        narrow += high - low < 0.25
        assert group["noise"] == pytest.approx(0.01, rel=0.35)
    assert inside >= 70  # of 80; 76 are expected
    assert narrow >= 70


def test_the_luck_of_a_seed_is_no_noise_between_values(tmp_path):
    """Intervals stay as narrow as the rest's noise makes them, and hold the truth as often."""
    chance = np.random.default_rng(3)
    inside, widths = 0, {0.0: [], 0.05: []}
    for luck, of_luck in widths.items():
        for _ in range(60):
            rows = curves(SIZES, [-7.2 - 0.1 * i for i in range(4)], noise=0.01, seeds=3, chance=chance, luck=luck)
            group = report(tmp_path, rows)
            low, high = group["slope_ci"]
            inside += low <= -0.1 <= high
            of_luck.append(high - low)
        assert group["noise_paired"] == pytest.approx(0.01, rel=0.35)
    assert group["noise"] > 0.03
    assert inside >= 106  # of 120; 114 are expected
    assert np.median(widths[0.05]) == pytest.approx(np.median(widths[0.0]), rel=0.15)


def found(tmp_path, rows):
    (finding,) = transfer(write(tmp_path / "table.csv", rows))
    return finding


def test_a_value_that_only_an_unlucky_seed_has_run_is_not_held_to_its_luck(tmp_path):
    rows = curves(SIZES, (-7, -7, -7, -7), seeds=3)
    luck = {0: 0.1, 1: -0.04, 2: -0.06}
    some = [(*row[:5], row[5] + luck[row[4]]) for row in rows if row[4] == 0 or abs(row[3] + 7) < 2]
    finding = found(tmp_path, some)
    for curve, best in zip(finding.group.curves, finding.optima, strict=True):
        assert curve.shares == pytest.approx({str(seed): share for seed, share in luck.items()}, abs=1e-5)
        assert curve.means == pytest.approx({float(r[3]): r[5] for r in rows if r[2] == int(curve.size)}, abs=1e-5)
        assert (best.value, best.plateau) == (pytest.approx(-7.0, abs=1e-4), (-7.0,))


DESIGNS = {
    "all": lambda size, value: range(3),
    "around the best": lambda size, value: range(3) if -8 <= value <= -6 else (0,),
    "two that never meet": lambda size, value: (0, 1) if value % 2 else (2, 3),
    "others outside": lambda size, value: range(3) if -7 <= value <= -6 else (7,),
    "other ones at each value of the largest size": lambda size, value: range(3) if size < 512 else (value + 10,),
}


@pytest.mark.parametrize("design", DESIGNS)
def test_intervals_hold_the_optimum_whoever_ran_which_value(tmp_path, design):
    """Where the same seeds stand behind two values their luck cancels; where others do, it counts in full."""
    chance = np.random.default_rng(4)
    inside = 0
    for _ in range(60):
        rows = curves(SIZES, (-6.8,) * 4, 0.003, seeds=8, curvature=0.02, chance=chance, luck=0.02)
        group = report(tmp_path, [row for row in rows if row[4] in DESIGNS[design](row[2], row[3])])
        low, high = group["optimum_ci"]["512"]
        inside += low <= -6.8 <= high
    assert inside >= 50  # of 60; 57 are expected; with no regard to who ran what, 13 to 35


def test_means_are_those_of_a_mixed_model(tmp_path):
    """Against the textbook's formula: seeds 0, 1 ran two values, seed 2 the third alone."""
    table = {-8: {0: 3.10, 1: 3.14}, -7: {0: 3.00, 1: 3.05}, -6: {0: 3.11, 2: 3.08}}
    rows = [
        ("mup", "width", size, value, seed, loss)
        for size in (64, 128)
        for value, losses in table.items()
        for seed, loss in losses.items()
    ]
    finding = found(tmp_path, rows)
    rest, between = finding.noise.paired**2, finding.noise.deviation**2
    y = np.array([loss for losses in table.values() for loss in losses.values()])
    seeds = np.array([seed for losses in table.values() for seed in losses])
    values = np.repeat([0, 1, 2], 2)
    covariance = rest * np.eye(6) + (between - rest) * (seeds[:, None] == seeds[None])
    x = (values[:, None] == np.arange(3)).astype(float)
    of_means = np.linalg.inv(x.T @ np.linalg.solve(covariance, x))
    expected = of_means @ x.T @ np.linalg.solve(covariance, y)
    curve = finding.group.curves[0]
    assert list(curve.means.values()) == pytest.approx(expected)
    error = np.sqrt(of_means[0, 0] + of_means[2, 2] - 2 * of_means[0, 2])
    assert curve.error_between(-8.0, -6.0) == pytest.approx(error)


def test_scatter_that_the_noise_cannot_explain_widens_the_interval(tmp_path):
    chance = np.random.default_rng(2)
    inside = 0
    for _ in range(60):
        optima = [-7.2 - 0.1 * i + 0.15 * chance.normal() for i in range(4)]
        low, high = report(tmp_path, curves(SIZES, optima, noise=0.002, seeds=3, chance=chance))["slope_ci"]
        inside += low <= -0.1 <= high
    assert inside >= 50  # of 60; by the seeds' noise alone it would be about 20


def test_unstable_values_are_no_noise(tmp_path):
    rows = curves(SIZES, (-7, -7, -7, -7), noise=0.005, seeds=3)
    wild = [(*row[:5], row[5] + row[4]) if row[3] == -4 else row for row in rows]
    assert report(tmp_path, wild)["noise"] == pytest.approx(0.005, rel=0.3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--noise", "inf"], "--noise is inf; expected a standard deviation"),
        (["--slope-tolerance", "-1"], "--slope-tolerance is -1.0; expected a number above 0"),
        (["--regret-tolerance", "nan"], "--regret-tolerance is nan; expected a number above 0"),
    ],
)
def test_options_that_make_no_sense(tmp_path, capsys, options, message):
    write(tmp_path / "table.csv", curves(SIZES, (-7, -7, -7, -7)))
    assert main(["report", "transfer", str(tmp_path / "table.csv"), *options]) == 1
    assert message in capsys.readouterr().err


def test_a_file_is_no_folder_for_figures(tmp_path, capsys):
    table = write(tmp_path / "table.csv", curves(SIZES, (-7, -7, -7, -7), noise=0.01, seeds=2))
    assert main(["report", "transfer", str(table), "--out", str(table)]) == 1
    assert "table.csv is a file; expected a folder" in capsys.readouterr().err
    assert main(["report", "transfer", str(table), "--noise", "0.1"]) == 0
    assert "note: --noise holds for groups of one seed" in capsys.readouterr().err


def test_a_given_noise_stands_in_for_seeds(tmp_path):
    rows = curves(SIZES, (-7.2, -7.2, -7.2, -7.2))
    assert report(tmp_path, rows, noise=0.03)["noise"] == 0.03
    assert report(tmp_path, rows, noise=0.03)["plateau"]
    assert not report(tmp_path, rows)["plateau"]


def test_a_value_that_one_seed_lost_is_lost(tmp_path):
    rows = curves(SIZES, (-7, -7, -7, -7), noise=0.001, seeds=2)
    rows = [(*row[:5], "") if row[3] == -7 and row[4] == 1 and row[2] == 512 else row for row in rows]
    group = report(tmp_path, rows)
    assert group["diverged"] == {"512": [-7.0]}
    assert group["regret_infinite"]


def test_a_sweeps_columns_tell_groups_apart(tmp_path):
    columns = (*COLUMNS, "optimizer", "branch_depth", "value", "width", "depth", "model.layer_norm", "recipe.lr",
               "seconds", "stopped", "steps", "corpus", "config_hash")  # fmt: skip
    rows = []
    for norm in (True, False):
        for n, (name, k) in enumerate((("sp", ""), ("mup", 1), ("mup", 2))):
            for row in curves((64, 128), (-7 - n, -7), name=name, noise=0.001, seeds=2):
                more = ("adamw", k, "recipe.lr", row[2], 2, norm, 2.0 ** row[3], row[5], "", 60, "c", f"{norm}{n}{row}")
                rows.append((*row, *more))
    rows[0] = (*rows[0][:5], "", *rows[0][6:14], "step 20: hopeless", 20, "c", "x")
    path = write(tmp_path / "results.csv", rows, columns)
    found = groups(path)
    labels = [(g["label"], g["model.layer_norm"], g["depth"], g["steps"]) for g in found]
    names = ("SP", "recipe, k = 1", "recipe, k ≥ 2")
    assert labels == [(name, norm, "2", 60) for norm in ("True", "False") for name in names]
    assert found[0]["diverged"] == {"64": [-10.0]}
    assert len(as_plain(transfer(path))["comparisons"]) == 2
    hashes = {f"True0{row}" for row in curves((64, 128), (-7, -7), name="sp", noise=0.001, seeds=2)}
    assert {g["label"] for g in groups(path, only=hashes)} == {"SP"}


def test_a_shape_of_both_grows_by_half_a_doubling_of_each(tmp_path):
    rows = [(n, "both", f"{s}x{s // 32}", *rest) for n, _, s, *rest in curves((64, 128, 256), (-7, -7.1, -7.2))]
    assert report(tmp_path, rows)["slope"] == pytest.approx(-0.1)


def test_the_three_forms_of_output(tmp_path, capsys):
    path = write(tmp_path / "t.csv", [*curves(SIZES, (-6, -7, -8, -9), name="sp"), *curves(SIZES, (-7,) * 4)])
    out = tmp_path / "out"
    assert main(["report", "transfer", str(path), "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "SP: does not transfer: the best value falls by 1.00 powers of two for each doubling of the width" in text
    assert "recipe: transfers: slope +0.00 [+0.00, +0.00], regret 0.000 nats, noise unknown (one seed)" in text
    assert "512    2.700  2.700" in text.replace(" (+0.000)", "")
    assert (out / "transfer_width.png").stat().st_size > 20_000
    assert main(["report", "transfer", str(path), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((out / "transfer.json").read_text())
    wanted = {"parametrization", "axis", "optimum", "best_loss", "slope", "slope_ci", "regret", "edge", "plateau",
              "noise", "verdict"}  # fmt: skip
    assert all(group.keys() >= wanted for group in printed["groups"])
    assert main(["report", "transfer", str(path), "--markdown"]) == 0
    assert "| **SP** | -6.00 | -7.00 | -8.00 | -9.00 | -1.00 [" in capsys.readouterr().out


ROW = ("mup", "width", 64, -7, 0, 3.0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.csv", None, "there is no"),
        ("t.csv", "", "is empty"),
        ("t.txt", "x", "is of an unknown kind; expected a .csv"),
        ("t.csv", "size,loss\n1,2\n", "lacks the columns parametrization, axis, log2_value, seed; expected"),
        ("t.csv", [], "has no runs yet"),
        ("t.csv", [ROW], "has one size only in every group (64)"),
        ("t.csv", [(*ROW[:5], ""), (*ROW[:2], 128, -7, 0, "")], "no run has a loss, all 2 diverged"),
        ("t.csv", [(*ROW[:5], "abc")], "row 2: loss is 'abc'; expected a number"),
        ("t.csv", [("mup", "width", "wide", -7, 0, 3.0)], "row 2: size is 'wide'; expected a number"),
        ("t.csv", [("mup", "width", "-1", -7, 0, 3.0)], "size is '-1'; expected a number above 0"),
        ("t.csv", [("mup", "width", 64, "", 0, 3.0)], "log2_value is ''; expected a number"),
        ("t.csv", [ROW[:4]], "row 2: expected 6 cells"),
        ("t.csv", [ROW, ROW, (*ROW[:2], 128, *ROW[3:])], "has size 64, 2^-7, seed 0 twice"),
        ("t.json", "[1]", "is no table of losses"),
        ("t.json", "{", "is no table of losses"),
    ],
)
def test_what_is_no_table_is_refused_in_one_line(tmp_path, capsys, name, content, message):
    path = tmp_path / name
    if isinstance(content, str):
        path.write_text(content)
    elif content is not None:
        write(path, content)
    assert main(["report", "transfer", str(path)]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("corpus", ("aaa", "bbb"), "mixes corpora (manifests aaa and bbb)"),
        ("steps", (60, 80), "mixes runs of 60 and 80 steps"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, capsys, column, values, message):
    rows = [(*row, values[row[2] == 512]) for row in curves(SIZES, (-7,) * 4)]
    path = write(tmp_path / "t.csv", rows, (*COLUMNS, column))
    assert main(["report", "transfer", str(path)]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("column", "values", "message", "own"),
    [
        ("corpus", ("aaa", "bbb"), "have different corpora (SP: aaa, recipe: bbb)", "data.path"),
        ("steps", (60, 80), "have different numbers of steps (SP: 60, recipe: 80)", "trainer.max_steps"),
    ],
)
def test_parametrizations_are_compared_on_equal_terms(tmp_path, capsys, column, values, message, own):
    rows = [(*row, value) for name, value in zip(("sp", "mup"), values, strict=True)
            for row in curves((64, 128), (-7, -7), name=name)]  # fmt: skip
    path = write(tmp_path / "t.csv", rows, (*COLUMNS, column))
    assert main(["report", "transfer", str(path)]) == 1
    assert message in (error := capsys.readouterr().err)
    assert f"or add the column {own}" in error
    # A column that tells them apart: two experiments, each compared with itself alone.
    apart = write(tmp_path / "apart.csv", [(*row, row[-1]) for row in rows], (*COLUMNS, column, own))
    found = as_plain(transfer(apart))
    assert (len(found["groups"]), found["comparisons"]) == (2, [])


def test_one_size_in_one_group_alone_is_a_verdict(tmp_path):
    path = write(tmp_path / "t.csv", [*curves((64,), (-7,), name="sp"), *curves(SIZES, (-7,) * 4)])
    sp, _ = groups(path)
    assert sp["verdict"] == "cannot tell: there is only one size; regret 0.000 nats, noise unknown (one seed)"
    assert (sp["slope"], sp["slope_ci"]) == (None, None)
