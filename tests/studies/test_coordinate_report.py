"""Coordinate checks in words, tables and figures, and the file they are kept in."""

import pytest

from mup_lightning.errors import UserError
from mup_lightning.studies.coordinates.report import draw, drawn_features, markdown, picture, text
from mup_lightning.studies.coordinates.results import read_check, write_check
from mup_lightning.studies.coordinates.settings import CheckSettings
from tests.studies.coordinate_runs import STEPS, result

GROWING = {("mlp", "norms"): 1.0, ("mlp", "changes"): 1.0}


def test_a_check_is_read_back_as_it_was_written_and_other_files_are_refused(tmp_path):
    check = result(exponents={("mlp", "changes"): -2000.0}, sp=GROWING, diverged=[(256, 2)])
    write_check(check, tmp_path / "check.json")
    assert read_check(tmp_path / "check.json") == check
    for content, message in (
        (None, "check.json cannot be read"),
        ('{"axis": ', "is damaged"),
        ('{"axis": "width"}', "check.json is not a result of this version of mup-lightning coord-check: unknown"),
        ("[]", "check.json is not a result of this version"),
    ):
        (tmp_path / "check.json").unlink(missing_ok=True)
        if content:
            (tmp_path / "check.json").write_text(content)
        with pytest.raises(UserError, match=message):
            read_check(tmp_path / "check.json")


def test_the_text_has_all_verdicts_and_every_exponent_of_the_one_asked_for():
    lines = text(result(exponents={}, sp=GROWING)).splitlines()
    assert lines[-1].startswith("recipe, k ≥ 2: PASS: no exponent leaves its band")
    assert lines[-2].startswith("SP: FAIL: mlp, ")
    assert "grows as n^+1.00" in lines[-2]
    assert "after 2 steps" in lines[2]
    row = next(line for line in lines if line.startswith("logits"))
    assert row.count("±") == 3
    assert "✗" not in row
    row = next(line for line in text(result(exponents=GROWING)).splitlines() if line.startswith("mlp, last block"))
    assert row.count("✗") == 2
    assert "+1.00" in row


def cells(table):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]


def test_one_table_of_many_checks():
    depths = CheckSettings(axis="depth", depths=[2, 4, 8], seeds=3)
    larger = CheckSettings(widths=[256, 512, 1024], seeds=2)
    checks = [
        result(exponents={}, sp=GROWING),
        result(exponents=GROWING, sp={}, branch_depth=1),
        result(exponents=GROWING, asked="sp", optimizer="adamw"),
        result(depths),
        result(larger),
        result(lr=0.001),
        result(lr=0.001),
    ]
    rows = cells(markdown(checks))
    assert [(*row[:3], row[3], row[4]) for row in rows] == [
        ("adamw", "width 64 to 256", "SP", "2^-7", "3"),
        ("muon_kimi", "width 256 to 1024", "recipe, k ≥ 2", "2^-7", "2"),
        ("muon_kimi", "width 64 to 256", "recipe, k ≥ 2", "0.001", "3"),
        ("muon_kimi", "width 64 to 256", "SP", "2^-7", "3"),
        ("muon_kimi", "width 64 to 256", "recipe, k = 1", "2^-7", "3"),
        ("muon_kimi", "width 64 to 256", "recipe, k ≥ 2", "2^-7", "3"),
        ("muon_kimi", "depth 2 to 8", "recipe, k ≥ 2", "2^-7", "3"),
    ]
    assert "+1.00 ± " in rows[4][6]
    assert rows[4][-1].startswith("**FAIL**: mlp")
    assert rows[5][-1].startswith("**PASS**")
    assert {len(row) for row in rows} == {10}


def test_a_check_that_was_asked_for_wins_over_a_control():
    own, control = result(exponents=GROWING, asked="sp"), result(exponents={}, sp={})
    for checks in ([own, control], [control, own]):
        assert "**FAIL**" in cells(markdown(checks))[0][-1]


def test_sizes_that_are_left_out_are_named():
    check = result(CheckSettings(widths=[64, 128, 256, 512], seeds=3), diverged=[(512, 2)])
    assert text(check).splitlines()[1].endswith("; exponents without width and depth (512, 2)")
    assert f"after {STEPS} steps" in text(check)
    assert "  diverged: (512, 2) seed 1: step 1: the loss is nan" in text(check)
    assert "without width and depth (512, 2) |" in markdown([check])


def test_the_picture_has_a_line_for_each_step_and_sp_next_to_the_recipe(tmp_path):
    check = result(exponents={("final_norm", "changes"): 1.0}, sp=GROWING)
    assert drawn_features(check)[-1] == "final_norm"  # the one that decides is always drawn
    figure = picture(check)
    panels = [ax for ax in figure.axes if ax.get_title() or ax.lines]
    titles = [ax.get_title() for ax in panels if ax.get_title()]
    assert titles == ["SP: ‖h‖_R", "recipe, k ≥ 2: ‖h‖_R", "SP: ‖h − h₀‖_R", "recipe, k ≥ 2: ‖h − h₀‖_R"]
    mlp = panels[4]  # the second row: mlp, last block, under SP
    lines = [line for line in mlp.lines if line.get_linestyle() == "-"]
    assert len(lines) == STEPS + 1
    assert list(lines[-1].get_xdata()) == [64, 128, 256]
    assert lines[-1].get_ydata()[2] / lines[-1].get_ydata()[0] == pytest.approx(4, rel=0.05)
    assert mlp.get_ylim() == panels[5].get_ylim()  # SP and the recipe on one scale
    draw(check, tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_a_check_whose_trainings_diverged_can_be_drawn():
    check = result(diverged=[(128, 2), (256, 2)])
    words = [written.get_text() for ax in picture(check).axes for written in ax.texts]
    assert set(words) == {"diverges"}
    assert "recipe, k ≥ 2: FAIL: training diverges" in text(check)


def test_what_decides_takes_the_place_of_its_kind():
    check = result(exponents=GROWING)
    assert [name.split(",")[0] for name in drawn_features(check)] == ["attention", "mlp", "residual", "logits"]
    assert drawn_features(check)[1] == check.asked.worst[0]
