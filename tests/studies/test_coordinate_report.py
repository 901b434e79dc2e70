"""Coordinate checks in words and pictures."""

import json

import pytest

from mup_lightning.errors import UserError
from mup_lightning.studies.coordinates.coordinate_figure import draw_check, drawn_features, picture
from mup_lightning.studies.coordinates.coordinate_results import curves, read_check
from mup_lightning.studies.coordinates.report import markdown, screen
from mup_lightning.studies.coordinates.settings import CheckSettings
from tests.studies.coordinate_runs import STEPS, runs, write_result

GROWING = {("mlp", "norms"): 1.0, ("mlp", "changes"): 1.0}


def read(folder):
    return read_check(folder / "coordinates.json")


def test_files_that_are_no_checks_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"there is no .*coordinates\.json; make it with mup-lightning coord-check"):
        read(tmp_path)
    (tmp_path / "coordinates.json").write_text('{"axis": "width"}')
    with pytest.raises(UserError, match="is no result of mup-lightning coord-check"):
        read(tmp_path)
    (tmp_path / "coordinates.json").write_text('{"axis": ')
    with pytest.raises(UserError, match="is damaged"):
        read(tmp_path)


def test_curves_are_the_runs_own(tmp_path):
    settings = CheckSettings(widths=[64, 128, 256], seeds=3)
    result = read(write_result(tmp_path, settings, GROWING))
    found = curves(result, "mup", "mlp, largest", "norms")
    expected = runs(settings, GROWING)
    assert [len(of_size) for of_size in found] == [3, 3, 3]
    run = next(run for run in expected if (run["width"], run["seed"]) == (128, 2))
    assert found[1][1] == [max(pair) for pair in zip(run["norms"]["mlp/0"], run["norms"]["mlp/1"], strict=True)]
    assert curves(result, "mup", "mlp, first block", "changes")[1][1] == run["changes"]["mlp/0"]


def test_the_screen_says_all_verdicts_and_every_exponent_of_the_one_asked_for(tmp_path):
    text = screen(read(write_result(tmp_path, exponents={}, sp=GROWING)))
    lines = text.splitlines()
    assert lines[-1].startswith("recipe, k ≥ 2: PASS: no exponent leaves its band")
    assert lines[-2].startswith("SP: FAIL: mlp, ")
    assert "grows as n^+1.00" in lines[-2]
    assert "after 2 steps" in text
    row = next(line for line in lines if line.startswith("logits"))
    assert row.count("±") == 3
    assert "✗" not in text.split("\n", 2)[2]


def test_marks_stand_where_a_band_is_left(tmp_path):
    text = screen(read(write_result(tmp_path, exponents=GROWING)))
    row = next(line for line in text.splitlines() if line.startswith("mlp, last block"))
    assert row.count("✗") == 2
    assert "+1.00" in row


def test_one_table_of_many_checks(tmp_path):
    folders = [
        write_result(tmp_path / "k2", exponents={}, sp=GROWING),
        write_result(tmp_path / "k1", exponents=GROWING, sp={}, branch_depth=1),
        write_result(tmp_path / "sp", exponents=GROWING, asked="sp", optimizer="adamw"),
        write_result(tmp_path / "depth", CheckSettings(axis="depth", depths=[2, 4, 8], seeds=3)),
    ]
    lines = markdown([read(folder) for folder in folders]).splitlines()
    heads = [tuple(cell.strip() for cell in line.split("|")[1:4]) for line in lines[2:]]
    assert heads == [
        ("adamw", "width 64 to 256", "SP"),
        ("muon_kimi", "width 64 to 256", "SP"),
        ("muon_kimi", "width 64 to 256", "recipe, k = 1"),
        ("muon_kimi", "width 64 to 256", "recipe, k ≥ 2"),
        ("muon_kimi", "depth 2 to 8", "recipe, k ≥ 2"),
    ]
    assert "**FAIL**: mlp" in lines[4]
    assert "+1.00 ± " in lines[4]
    assert "**PASS**" in lines[5]
    assert len({line.count("|") for line in lines}) == 1


def test_checks_at_other_sizes_are_rows_of_their_own(tmp_path):
    sizes = [CheckSettings(widths=[64, 128, 256], seeds=3), CheckSettings(widths=[256, 512, 1024], seeds=2)]
    folders = [write_result(tmp_path / str(n), settings, {}) for n, settings in enumerate(sizes)]
    lines = markdown([read(folder) for folder in folders]).splitlines()[2:]
    found = [[cell.strip() for cell in line.split("|")] for line in lines]
    assert [(row[2], row[5]) for row in found] == [("width 256 to 1024", "2"), ("width 64 to 256", "3")]


def test_checks_at_two_rates_are_two_rows(tmp_path):
    folders = [write_result(tmp_path / f"{lr}", exponents={}, lr=lr) for lr in (0.0078125, 0.001, 0.0078125)]
    lines = markdown([read(folder) for folder in folders]).splitlines()[2:]
    assert [[cell.strip() for cell in line.split("|")[4:6]] for line in lines] == [["0.001", "3"], ["2^-7", "3"]]


def test_sizes_that_are_left_out_are_named_and_steps_are_those_of_a_sound_run(tmp_path):
    settings = CheckSettings(widths=[64, 128, 256, 512], seeds=3)
    result = read(write_result(tmp_path, settings, {}))
    lost = [run for run in result["runs"] if run["width"] == 512]
    result["runs"] = [run | {"losses": [], "diverged": "step 1: the loss is nan"} for run in lost] + [
        run for run in result["runs"] if run["width"] != 512
    ]
    head = screen(result).splitlines()[1]
    assert head.endswith("; exponents without width and depth (512, 2)")
    assert f"after {STEPS} steps" in screen(result)
    assert "without width and depth (512, 2) |" in markdown([result])


def test_a_check_that_was_asked_for_wins_over_a_control(tmp_path):
    own = write_result(tmp_path / "own", exponents=GROWING, asked="sp")
    control = write_result(tmp_path / "control", exponents={}, sp={})
    for folders in ([own, control], [control, own]):
        assert "**FAIL**" in markdown([read(folder) for folder in folders]).splitlines()[2]


def test_the_picture_has_a_line_a_step_and_sp_beside_the_recipe(tmp_path):
    result = read(write_result(tmp_path, exponents={("final_norm", "changes"): 1.0}, sp=GROWING))
    assert drawn_features(result) == [
        "residual, last block",
        "attention, last block",
        "mlp, last block",
        "logits",
        "final_norm",  # what decided is always drawn
    ]
    figure = picture(result)
    panels = [ax for ax in figure.axes if ax.get_title() or ax.lines]
    titles = [ax.get_title() for ax in panels if ax.get_title()]
    assert titles == ["SP: ‖h‖_R", "recipe, k ≥ 2: ‖h‖_R", "SP: ‖h − h₀‖_R", "recipe, k ≥ 2: ‖h − h₀‖_R"]
    mlp = panels[8]  # the third row: mlp, last block, under SP
    lines = [line for line in mlp.lines if line.get_linestyle() == "-"]
    assert len(lines) == STEPS + 1
    assert list(lines[-1].get_xdata()) == [64, 128, 256]
    growth = lines[-1].get_ydata()[2] / lines[-1].get_ydata()[0]
    assert growth == pytest.approx(4, rel=0.05)
    assert mlp.get_ylim() == panels[9].get_ylim()  # SP and the recipe on one scale
    draw_check(result, tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_a_check_whose_trainings_diverged_can_be_drawn(tmp_path):
    folder = write_result(tmp_path)
    result = json.loads((folder / "coordinates.json").read_text())
    for run in result["runs"]:
        if run["width"] == 256:
            run |= {"diverged": "step 1: the loss is nan", "losses": []}
            for kind in ("norms", "changes"):
                run[kind] = {tap: curve[:1] for tap, curve in run[kind].items()}
    result["checks"]["mup"] |= {"exponents": [], "worst": None, "verdict": "FAIL", "sentence": "training diverges"}
    words = [text.get_text() for ax in picture(result).axes for text in ax.texts]
    assert set(words) == {"diverges"}
    assert "recipe, k ≥ 2: FAIL: training diverges" in screen(result)


def test_what_decided_takes_the_place_of_its_kind(tmp_path):
    result = read(write_result(tmp_path))
    result["checks"]["mup"]["worst"] = {"feature": "attention, first block", "quantity": "change"}
    assert drawn_features(result) == ["residual, last block", "attention, first block", "mlp, last block", "logits"]
