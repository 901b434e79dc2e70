"""What is told and drawn of a probe: only what its file says."""

import numpy as np
import pytest

from mup_lightning.errors import UserError
from mup_lightning.studies.probe.probe_figure import curves, picture
from mup_lightning.studies.probe.probe_results import read_probe
from mup_lightning.studies.probe.report import markdown, screen

WIDTHS, DEPTHS, SEEDS = [32, 64, 128], [2, 4, 8], 2


def result(slope=0.5, declared=0.0, verdict="inconsistent"):
    """A probe of one role that grows as n^slope · L^-1, at two seeds a factor of 2 apart."""
    networks = []
    for width, depth in [(n, 2) for n in WIDTHS] + [(32, L) for L in DEPTHS[1:]]:
        for seed in range(SEEDS):
            value = (1 + seed) * width**slope / depth
            windows = {"first": None, "later": value}
            networks.append({"width": width, "depth": depth, "seed": seed, "roles": {"hidden": {"windows": windows}}})

    def fit(exponent):
        return {"exponent": exponent, "low": exponent - 0.1, "high": exponent + 0.1, "last": exponent}

    def cell(axis, value, judged):
        return {"window": "later", "role": "hidden", "axis": axis, "declared": value, "verdict": judged}

    return {
        "optimizer": "x",
        "verdict": verdict,
        "sentence": "x is not y.",
        "fits": {"first": {}, "later": {"hidden": {"width": fit(slope), "depth": fit(-1.0)}}},
        "cells": [cell("width", declared, verdict), cell("depth", -1.0, "consistent")],
        "proposal": None,
        "facts": {},
        "settings": {"widths": WIDTHS, "depths": DEPTHS},
        "networks": networks,
    }


def slope_of(line):
    x, y = np.log(line.get_xdata()), np.log(line.get_ydata())
    return np.polyfit(x, y, 1)[0]


def test_curves_take_the_line_on_which_only_one_size_varies():
    assert curves(result(), "hidden", "width", "later").keys() == set(WIDTHS)
    found = curves(result(), "hidden", "depth", "later")
    assert list(found) == DEPTHS
    assert found[8] == pytest.approx([32**0.5 / 8, 2 * 32**0.5 / 8])
    assert curves(result(), "hidden", "width", "first") == {}


def test_the_picture_shows_points_fit_and_declared_slope():
    figure = picture(result())
    above, below = figure.axes
    for ax, fitted, declared in ((above, 0.5, 0.0), (below, -1.0, -1.0)):
        dashed = [line for line in ax.lines if line.get_linestyle() == "--"]
        full = [line for line in ax.lines if line.get_linestyle() == "-"]
        assert [slope_of(line) for line in dashed] == pytest.approx([declared])
        assert [slope_of(line) for line in full] == pytest.approx([fitted])
        points = [line for line in ax.lines if line.get_marker() == "o"]
        assert slope_of(points[0]) == pytest.approx(fitted)
        # The fitted line goes through the points' middle, and pale seeds lie around them.
        assert np.log(points[0].get_ydata()).mean() == pytest.approx(np.log(full[0].get_ydata()).mean())
        pale = [line for line in ax.lines if line.get_marker() == "."]
        assert all(line.get_ydata()[1] / line.get_ydata()[0] == pytest.approx(2.0) for line in pale)
        assert {text.get_text() for text in ax.texts} == {
            f"later steps: {fitted:+.2f} ± 0.10",
            f"declared: {declared:+.2f}",
        }
    assert "x is not y." in figure.get_suptitle()


def test_the_table_for_the_terminal():
    lines = [line.split() for line in screen(result()).splitlines() if line.startswith("hidden")]
    assert lines == ["hidden later +0.50 [+0.40, +0.60] 0 inconsistent -1.00 [-1.10, -0.90] -1 consistent".split()]
    assert "its first step changes nothing" in screen(result())


def test_the_markdown_table_marks_what_differs():
    text = markdown([result(), result(verdict="unclear")])
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert len({len(row) for row in rows}) == 1
    assert rows[2] == ["**x**: inconsistent", "hidden", "0, -1", "–", "+0.50 ± 0.10 ✗", "–", "-1.00 ± 0.10"]
    assert rows[3][4] == "+0.50 ± 0.10 ?"


def test_what_is_no_result_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"there is no .*make it with mup-lightning probe"):
        read_probe(tmp_path / "probe.json")
    for text, message in (("{", "is damaged"), ('{"case": 1}', "is no result of mup-lightning probe")):
        (tmp_path / "probe.json").write_text(text)
        with pytest.raises(UserError, match=message):
            read_probe(tmp_path / "probe.json")
