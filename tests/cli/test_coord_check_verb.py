"""`mup-lightning coord-check`: what it trains, writes, prints and refuses, and how it ends."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from mup_lightning.cli.main import main
from mup_lightning.errors import UserError
from mup_lightning.studies.coordinates import CheckSettings, run
from mup_lightning.studies.coordinates.report import read_check
from mup_lightning.studies.coordinates.run import name_of, read_list
from tests.studies.coordinate_runs import result
from tests.studies.sweeps import tiny_sweep

LIST = Path("recipes/experiment/coordinates.yaml")


@pytest.fixture
def argv(corpus, tmp_path):
    """A check of seconds, in this process."""
    values = tiny_sweep(corpus)["sweep"]["set"] | {
        "out": tmp_path / "check",
        "workers": 0,
        "seeds": 2,
        "widths": "16,32,64",
        "recipe.optimizer": "muon_kimi",
        "data.batch_size": 4,
        "data.micro_batch": 4,
        "data.val_tokens": 64,
        "trainer.max_steps": 3,
    }
    return ["coord-check", *(item for key, value in values.items() for item in (f"--{key}", str(value)))]


def test_one_check_and_its_files(argv, tmp_path, capsys):
    wide = [item for band in ("growth_at_init", "feature_band", "change_band") for item in (f"--{band}", "9")]
    assert main([*argv, *wide, "--axis", "depth", "--depths", "1,2,4"]) == 0
    printed, progress = capsys.readouterr()
    assert "coordinate check of muon_kimi over depth: 12 trainings in this process" in progress
    assert "\nrecipe, k ≥ 2: PASS: all 42 exponents" in printed
    assert "\nSP: PASS" in printed
    found = read_check(tmp_path / "check" / "coordinates.json")
    assert (found.settings.axis, list(found.sizes)) == ("depth", [(16, 1), (16, 2), (16, 4)])
    assert len(found.runs) == 12
    assert found.versions["torch"].startswith("2.")
    assert (tmp_path / "check" / "coordinates.png").read_bytes().startswith(b"\x89PNG")


def test_the_exit_status_is_the_verdict_of_what_was_asked_for(argv, tmp_path):
    """SP alone, since it was asked for; with bands of nothing no exponent can stay inside."""
    bands = [item for band in ("growth_at_init", "feature_band", "change_band") for item in (f"--{band}", "1e-9")]
    code = main([*argv, *bands, "--recipe.parametrization", "sp"])
    found = json.loads((tmp_path / "check" / "coordinates.json").read_text())["findings"]
    assert [one["of"] for one in found] == [["sp"]]
    assert code == {"FAIL": 3, "UNCLEAR": 4}[found[0]["verdict"]]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--widths", "16,32"], "--widths is 16,32; expected at least three"),
        (["--axis", "sideways"], "--axis is sideways; expected one of width, depth, both"),
        (["--data.path", "nowhere"], "nowhere"),
        (["--wide", "64"], "unknown option"),
        (["--out", "FILE"], "FILE is not a folder; expected one"),
        (["--table", "folder"], "--table and --all allow no other option than --out"),
    ],
)
def test_mistakes_end_in_one_line(argv, tmp_path, monkeypatch, refused, more, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_text("")
    assert message in refused([*argv, *more])


def test_the_table_of_finished_checks(tmp_path, capsys, refused):
    folders = [tmp_path / "a", tmp_path / "b"]
    result().write(folders[0] / "coordinates.json")
    result(CheckSettings(axis="depth", depths=[2, 4, 8])).write(folders[1] / "coordinates.json")
    assert main(["coord-check", "--table", *map(str, folders)]) == 0
    assert capsys.readouterr().out.count("| muon_kimi |") == 2
    assert "cannot be read" in refused(["coord-check", "--table", tmp_path])


def test_a_list_of_checks_is_run_once_and_ends_in_a_table(tmp_path, monkeypatch, capsys, refused):
    made = []

    def finished(settings, config):
        made.append(config.recipe.optimizer)
        return replace(result(optimizer=made[-1]), settings=settings, config=config)

    monkeypatch.setattr(run, "check", finished)
    monkeypatch.setattr(run, "picture", lambda _: Figure())
    file = tmp_path / "list.yaml"
    checks = [{"optimizer": "adamw"}, {"optimizer": "sgd"}, {"optimizer": "adamw", "recipe.scale_clip": False}]
    file.write_text(json.dumps({"configs": [], "checks": checks}))
    words = ["coord-check", "--all", str(file), "--out", str(tmp_path / "out")]
    for _ in range(2):
        assert main(words) == 0  # whatever the verdicts
        assert made == ["adamw", "sgd", "adamw"]
        table = (tmp_path / "out" / "table.md").read_text()
        assert table in capsys.readouterr().out
        assert "| sgd | width 256 to 768 |" in table
    assert {path.name for path in (tmp_path / "out").iterdir()} > {"adamw-width-k2", "adamw-width-k2-2"}
    file.write_text(json.dumps({"configs": [], "checks": checks[2:]}))
    assert "adamw-width-k2 has a check with other options than the list" in refused(words)


def test_the_shipped_list_has_its_optimizers_over_width_and_depth():
    checks = read_list(LIST)
    names = [name_of(settings, config) for settings, config in checks]
    optimizers = {config.recipe.optimizer for _, config in checks}
    assert len(optimizers) >= 9
    assert len(names) == len(set(names))
    assert set(names) == {f"{name}-{way}" for name in optimizers for way in ("width-k2", "depth-k2", "depth-k1")}
    assert {settings.alone for settings, config in checks if config.recipe.branch_depth == 1} == {True}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "is not a list of coordinate checks"),
        ("{configs: [], checks: [{axis: width}]}", "is not a list of coordinate checks"),
        ("{configs: [], checks: [{optimizer: adamw}, {optimizer: adam}]}", "list.yaml, check 2: there is no"),
        ("{configs: [], checks: [{optimizer: adamw, seeds: 1}]}", "check 1: --seeds is 1; expected"),
        ("{configs: [], checks: [{optimizer: adamw, modle.width: 1}]}", "check 1: unknown option modle.width"),
    ],
)
def test_lists_are_checked(tmp_path, content, message):
    (tmp_path / "list.yaml").write_text(content)
    with pytest.raises(UserError, match=message):
        read_list(tmp_path / "list.yaml")
