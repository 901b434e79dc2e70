"""`mup-lightning assumptions`: what it writes, prints, refuses, and how it ends."""

import json

import pytest

from mup_lightning.cli.main import main

TINY = ["--width", "16", "--depths", "2,3,4", "--seeds", "2", "--steps", "2", "--workers", "0"]


def test_both_networks(tmp_path, corpus, capsys):
    out = tmp_path / "deep" / "folder"
    argv = ["assumptions", *TINY, "--optimizer", "muon_kimi", "--data", str(corpus), "--out", str(out)]
    assert main([*argv, "--json"]) in (0, 3, 4)
    result = json.loads((out / "assumptions.json").read_text())
    assert len(result["findings"]) == 2 * 4
    assert len(result["runs"]) == 2 * 3 * 2
    assert result["versions"]["torch"].startswith("2.")
    assert json.loads(capsys.readouterr().out) == {key: value for key, value in result.items() if key != "runs"}
    assert (out / "table.md").read_text().count("\n") == 2 + 8
    assert (out / "assumptions_alignment.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("least", "tolerance", "statuses"), [(0.1, 9, [0]), (0.9999, 9, [3]), (0.1, 1e-6, [3, 4])])
def test_the_exit_status_is_the_verdict(tmp_path, capsys, least, tolerance, statuses):
    """With thresholds that everything passes, that no ratio passes, and that no exponent passes."""
    argv = ["assumptions", *TINY, "--network", "mlp", "--optimizer", "adamw", "--out", str(tmp_path)]
    assert main([*argv, "--least", str(least), "--tolerance", str(tolerance)]) in statuses
    printed = capsys.readouterr().out
    assert "a step does not cancel its weight" in printed
    assert "GPT-2" not in printed


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--network", "cnn"], "--network is cnn; expected one of mlp, gpt2, both"),
        (["--depths", "a,b"], "--depths is a,b; expected at least three whole numbers"),
        (["--optimizer", "adam"], "there is no recipes/optimizer/adam.yaml; optimizer can be: adamw"),
        (["--data", "nowhere"], "nowhere"),
        (["--rates", "nowhere.yaml"], "nowhere.yaml cannot be read"),
        (["--rates", "recipes/experiment/tune.yaml"], "recipes/experiment/tune.yaml is {'sweep'"),
        (["--out", "FILE"], "is not a folder; expected one"),
    ],
)
def test_mistakes_are_one_clear_line(tmp_path, argv, message, capsys):
    (tmp_path / "file").write_text("x")
    argv = [str(tmp_path / "file") if word == "FILE" else word for word in argv]
    assert main(["assumptions", *TINY, *argv]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert "Traceback" not in error
