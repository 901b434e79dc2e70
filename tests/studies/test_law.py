"""The law of the optima: known exponents, intervals that hold the truth, and what is refused."""

import math
from dataclasses import asdict, replace

import numpy as np
import pytest

from mup_lightning.errors import UserError
from mup_lightning.files import write_json
from mup_lightning.spectral.horizon import AXES, read_law
from mup_lightning.studies.scaling import student_t
from mup_lightning.studies.transfer.curves import Noise
from mup_lightning.studies.transfer.estimate import Optimum, regress_optima
from mup_lightning.studies.transfer.law import cells_of, fit, text
from mup_lightning.studies.transfer.losses import read_losses
from tests.studies.tables import COLUMNS, write

HEAD = (*COLUMNS, "width", "depth", "steps", "tokens", "optimizer")
CENTRE = (64, 2, 2**18, 2**9)
TRUTH = {"width": 0.1, "depth": -0.2, "tokens": -0.4, "batch": 0.5}
TARGET = (1024, 16, 2**28, 2**13)


def star(joint=((1, 0, 1, 0), (0, 0, 2, 2), (1, 1, 1, 1))):
    """Powers of two above the centre: two further levels on every axis, and joint cells."""
    return [
        (0, 0, 0, 0),
        *(tuple(level * (i == axis) for i in range(4)) for axis in range(4) for level in (1, 2)),
        *joint,
    ]


def best_at(place, exponents=TRUTH):
    return -7 + sum(a * math.log2(side / own) for a, side, own in zip(exponents.values(), place, CENTRE, strict=True))


def rows(cells=None, exponents=TRUTH, noise=0.0, scatter=0.0, chance=None, extra=None, lean=0.0):
    """Losses of every cell at five rates around the best, and three seeds around the best one.

    `extra` is added to the optimum of a cell; curves are `lean` steeper above their optimum.
    """
    chance, table = chance or np.random.default_rng(0), []
    for levels in cells or star():
        place = [side * 2**level for side, level in zip(CENTRE, levels, strict=True)]
        best = best_at(place, exponents) + (extra or {}).get(levels, 0.0) + scatter * chance.normal()
        middle = round(best)
        for value in range(middle - 2, middle + 3):
            for seed in range(3 if abs(value - middle) < 2 else 1):
                height = 0.04 * (value - best) ** 2 * (1 + lean * (value > best))
                loss = 3 - 0.1 * sum(levels) + height + noise * chance.normal()
                width, depth, tokens, batch = place
                own = ("mup", "tokens", tokens, value, seed, loss)
                table.append((*own, width, depth, tokens // batch, tokens, "adamw"))
    return table


def law_of(tmp_path, table, head=HEAD):
    return fit(*cells_of(read_losses(write(tmp_path / "t.csv", table, head))))


def test_known_exponents_are_recovered(tmp_path):
    found = law_of(tmp_path, rows(noise=0.001))
    assert {axis: found.exponent(axis).estimate for axis in AXES} == pytest.approx(TRUTH, abs=0.03)
    value, half_width = found.at(TARGET)
    assert abs(value - best_at(TARGET)) < half_width < 1
    assert [found.beyond(axis, TARGET) for axis in AXES] == [4.0, 2.0, 2.0**8, 4.0]
    assert (len(found.joint), found.left_out) == (3, {})
    assert all(abs(off) < half_width for off, half_width in found.joint.values())
    law = found.law("adamw", "recipe.lr", "a table")
    write_json(tmp_path / "law.json", asdict(law))
    read = read_law(f"fitted:{tmp_path / 'law.json'}")
    assert read == law
    assert read.ranges["tokens"] == (2**18, 2**20)
    assert read.exponents["tokens"].low < -0.4 < read.exponents["tokens"].high


def test_regressions_cover_the_truth(tmp_path):
    """Exponents and the optimum at the target, with and without a misfit, whatever the errors of single optima."""
    design = np.array([[1, *levels] for levels in star()], dtype=float)
    design[:, 1:] -= design[:, 1:].mean(axis=0)
    target, chance = np.array([1.0, 4, 3, 10, 4]), np.random.default_rng(0)
    errors = np.where(np.arange(len(design)) % 4 == 0, 0.3, 0.12)  # some stand next to a value that diverged
    for scatter in (0.0, 0.1, 0.25):
        inside = []
        for _ in range(500):
            dof = 30
            known = errors * math.sqrt(chance.chisquare(dof) / dof)
            y = errors * chance.normal(size=len(errors)) + scatter * chance.normal(size=len(errors))
            plain = Optimum("", 0, 0, 0, 0, 0, 0, 0, (), 0, False)
            optima = [replace(plain, value=value, se=se) for value, se in zip(y, known, strict=True)]
            model = regress_optima(optima, design, Noise(0.01, 0.01, dof), weighted=True)
            errors_of = [model.error(of) for of in np.eye(5)] + [model.error(target, 1.0)]
            off = [*model.coefficients, target @ model.coefficients - scatter * chance.normal()]
            inside.append([abs(o) <= student_t(d) * se for o, (se, d) in zip(off, errors_of, strict=True)])
        assert np.all((np.mean(inside, axis=0) > 0.91) & (np.mean(inside, axis=0) < 0.99)), scatter


@pytest.mark.parametrize(("scatter", "lean"), [(0.0, 1.0), (0.1, 0.0)])
def test_losses_lead_to_intervals_that_hold_the_truth(tmp_path, monkeypatch, scatter, lean):
    monkeypatch.setattr("mup_lightning.studies.transfer.estimate._DRAWS", 200)
    chance, inside = np.random.default_rng(2), []
    for _ in range(10):
        found = law_of(tmp_path, rows(noise=0.006, scatter=scatter, chance=chance, lean=lean))
        for axis, true in TRUTH.items():
            own = found.exponent(axis)
            inside.append(own.low <= true <= own.high)
            assert own.high - own.low < 0.5
        value, half_width = found.at(TARGET)
        inside.append(abs(value - best_at(TARGET) - scatter * chance.normal()) <= half_width)
    assert np.mean(inside) > 0.85  # of 50, five a table; 95 % are expected


def test_joint_cells_show_where_the_axes_do_not_add_up(tmp_path):
    found = law_of(tmp_path, rows(noise=0.001, extra={(0, 0, 2, 2): 1.0}))
    off = {place[3]: off / half_width for place, (off, half_width) in found.joint.items()}
    assert off[2**11] > 1 > max(abs(off[2**9]), abs(off[2**10]))
    assert "2,048 a step: NOT as the axes predict, off by +1.0" in text(found, {})


def test_what_a_law_cannot_be_fitted_to_is_one_line(tmp_path):
    def refused(message, table, head=HEAD, of=lambda row: row):
        with pytest.raises(UserError, match=message):
            law_of(tmp_path, [of(row) for row in table], head)

    all_cells, few = rows(noise=0.001), rows([(0, 0, 0, 0)], noise=0.001)
    refused(
        "all optima are of one size .width 64, depth 2, 262,144 tokens, 512 a step., and a law needs several",
        few,
    )
    refused("sizes at which one of these grows alone", rows([(i, i, 0, 0) for i in range(3)], noise=0.001))
    refused("at every size the best value is the last one tried", [row for row in all_cells if row[3] < best_at(
            (*row[6:8], row[9], row[9] / row[8])) - 0.6])  # fmt: skip
    refused("no run has a loss", all_cells, of=lambda row: (*row[:5], "", *row[6:]))
    refused("the table does not say the width and depth and batch of its runs", all_cells, COLUMNS, lambda row: row[:6])
    refused("the runs differ in optimizer", all_cells, of=lambda row: (*row[:-1], "adamw" if row[4] else "lion"))
    refused("trained under recipe.time_rule sde; a law is fitted", all_cells, (*HEAD, "recipe.time_rule"),
            lambda row: (*row, "sde"))  # fmt: skip


def test_an_axis_of_one_size_has_no_exponent_and_edges_are_left_out(tmp_path):
    table = rows([(0, 0, i, j) for i in range(3) for j in range(2)], noise=0.001)
    edge = [row for row in table if not (row[9] == 2**20 and row[3] > best_at((64, 2, 2**20, row[9] // row[8])) - 0.5)]
    found = law_of(tmp_path, edge)
    assert (found.axes, found.exponent("width")) == (["tokens", "batch"], None)
    assert {place[2] for place in found.left_out} == {2**20}
    said = text(found, {"tokens": -0.5, "batch": 0.5})
    assert "warning: not in the law: width 64, depth 2, 1,048,576 tokens, 512 a step: the best value is the las" in said
    assert found.exponent("tokens").estimate == pytest.approx(-0.4, abs=0.1)
