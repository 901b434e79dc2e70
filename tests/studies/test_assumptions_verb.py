"""`mup-lightning assumptions`: what it writes, says, refuses, and how it ends."""

import json

import pytest

from mup_lightning.cli.main import main

TINY = ["--width", "16", "--depths", "2,3,4", "--seeds", "2", "--steps", "2", "--workers", "0"]


def test_both_networks(tmp_path, corpus, capsys):
    out = tmp_path / "deep" / "folder"
    argv = ["assumptions", *TINY, "--optimizer", "muon_kimi", "--data", str(corpus), "--out", str(out), "--json"]
    status = main(argv)
    result = json.loads((out / "assumptions.json").read_text())
    assert status == {"holds": 0, "does not hold": 3, "unclear": 4}[result["verdict"]]
    assert len(result["verdicts"]) == 2 * 4
    assert len(result["runs"]) == 2 * 3 * 2
    assert result["versions"]["torch"].startswith("2.")
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {key: value for key, value in result.items() if key != "runs"}
    assert (out / "table.md").read_text().count("\n") == 2 + 8
    assert (out / "assumptions_alignment.png").read_bytes().startswith(b"\x89PNG")
    assert main([*argv[:-1], "--network", "mlp"]) in (0, 3, 4)
    printed = capsys.readouterr()
    assert "a step does not cancel its weight" in printed.out
    assert "GPT-2" not in printed.out
    assert "assumptions.json was there and has been replaced" in printed.err


@pytest.mark.parametrize(("least", "tolerance", "status"), [("0.1", "9", 0), ("1", "9", 3), ("0.1", "1e-6", 3)])
def test_the_exit_status_is_the_verdict(tmp_path, least, tolerance, status):
    """With thresholds that everything passes, that no ratio passes, and that no exponent passes."""
    argv = ["assumptions", *TINY, "--network", "mlp", "--optimizer", "adamw", "--out", str(tmp_path)]
    found = main([*argv, "--least", least, "--tolerance", tolerance])
    assert found == status or (tolerance == "1e-6" and found == 4)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--network", "cnn"], "--network is 'cnn'; expected mlp, gpt2 or both"),
        (["--depths", "a,b"], "--depths is 'a,b'; expected whole numbers"),
        (["--depths", "4,8"], "--depths is 4,8; expected at least three"),
        (["--optimizer", "adam"], "--optimizer is 'adam'; expected one or more of"),
        (["--optimizer", "sophia"], "--optimizer sophia cannot be checked"),
        (["--workers", "-1"], "--workers is -1"),
        (["--data", "nowhere"], "nowhere"),
        (["--out", "FILE"], "is not a folder; expected one"),
    ],
)
def test_mistakes_are_one_clear_line(tmp_path, argv, message, capsys):
    (tmp_path / "file").write_text("x")
    argv = [str(tmp_path / "file") if word == "FILE" else word for word in argv]
    assert main(["assumptions", *argv]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert "Traceback" not in error
