"""`mup-lightning coord-check`: what it trains, writes, says and refuses, and how it ends."""

import json

import pytest

from mup_lightning.cli.main import main
from mup_lightning.studies.coordinates.settings import CheckSettings
from tests.studies.coordinate_runs import write_result


@pytest.fixture
def argv(corpus, tmp_path):
    """A check of seconds, in this process."""
    options = {
        "widths": "16,32,64",
        "seeds": 2,
        "workers": 0,
        "out": tmp_path / "check",
        "model.width": 16,
        "model.depth": 1,
        "model.context": 16,
        "recipe.base_width": 16,
        "recipe.base_depth": 1,
        "data.path": corpus,
        "data.tokenizer": "bytes",
        "data.batch_size": 4,
        "data.micro_batch": 4,
        "data.val_tokens": 64,
        "trainer.max_steps": 3,
        "trainer.accelerator": "cpu",
    }
    return ["coord-check", *(item for key, value in options.items() for item in (f"--{key}", str(value)))]


def test_one_check_and_its_files(argv, tmp_path, capsys):
    wide = [item for band in ("growth_at_init", "feature_band", "change_band") for item in (f"--{band}", "9")]
    over_depth = ["--depths" if item == "--widths" else "1,2,4" if item == "16,32,64" else item for item in argv]
    assert main([*over_depth, *wide, "--axis", "depth"]) == 0
    printed = capsys.readouterr()
    assert "depths 1, 2, 4, 2 seeds, 3 steps at a constant learning rate; 12 trainings in this process" in printed.out
    assert "\nrecipe, k ≥ 2: PASS: no exponent" in printed.out
    assert "\nSP: PASS" in printed.out
    assert "[12/12] " in printed.err
    result = json.loads((tmp_path / "check" / "coordinates.json").read_text())
    assert (result["axis"], result["asked"], result["shapes"]) == ("depth", "mup", [[16, 1], [16, 2], [16, 4]])
    assert len(result["runs"]) == 12
    assert (tmp_path / "check" / "coordinates.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("bands", "status"), [("1e-9", "not 0"), ("9", "0")])
def test_the_exit_status_is_the_verdict_of_what_was_asked_for(argv, tmp_path, bands, status):
    """SP alone, since it was asked for; with bands of nothing no exponent can stay inside."""
    options = ["--recipe.parametrization", "sp", "--growth_at_init", bands, "--feature_band", bands]
    code = main([*argv, *options, "--change_band", bands])
    result = json.loads((tmp_path / "check" / "coordinates.json").read_text())
    assert list(result["checks"]) == ["sp"]
    assert code == {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 2}[result["checks"]["sp"]["verdict"]]
    assert (code == 0) == (status == "0")


def test_a_base_rate_that_diverges_is_exit_status_2(argv, capsys):
    options = ["--alone", "--recipe.optimizer", "sgd", "--recipe.lr", "1e38"]
    assert main([*argv, *options]) == 2
    assert "INCONCLUSIVE: training diverges at the smallest size already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--widths", "16,32"], "--widths is 16,32; expected at least three"),
        (["--axis", "width", "--depths", "2,4,8"], "--axis width takes no --depths; its sizes are --widths"),
        (["--axis=both"], "--axis both takes no --widths; its sizes are --ratios"),
        (["--axis", "sideways"], "--axis|axis"),
        (["--data.path", "nowhere"], "nowhere"),
        (["--wide", "64"], "unknown option"),
        (["--out", "FILE"], "FILE is not a folder; expected one"),
    ],
)
def test_mistakes_are_told_apart_from_a_fail_by_their_first_word(argv, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_text("")
    assert main([*argv, *options]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert any(part in printed.err for part in message.split("|"))
    assert printed.out == ""


def test_the_table_of_checks(tmp_path, capsys):
    write_result(tmp_path / "a")
    write_result(tmp_path / "b", CheckSettings(axis="depth", depths=[2, 4, 8]))
    assert main(["coord-check", "--table", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert capsys.readouterr().out.count("| muon_kimi |") == 2
    assert main(["coord-check", "--table", str(tmp_path)]) == 1
    assert "there is no" in capsys.readouterr().err
    assert main(["coord-check", "--table"]) == 1
    assert "--table needs folders" in capsys.readouterr().err
