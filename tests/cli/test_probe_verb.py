"""`mup-lightning probe`: what it writes, says, refuses, and how it ends."""

import json

import pytest

from mup_lightning.cli.main import main
from mup_lightning.spectral.families import FAMILIES
from mup_lightning.studies.probe import measure
from mup_lightning.studies.probe.measure import Subject

TINY = ["--widths", "16,32,64", "--depths", "1,2,4", "--seeds", "2", "--steps", "6"]


@pytest.fixture(scope="module")
def measured_once():
    """Each optimizer is measured once for the tests that differ in what is made of it."""
    measured, real = {}, measure.run_all

    def run_all(name, *rest):
        if name not in measured:
            measured[name] = real(name, *rest)
        return measured[name]

    return run_all


def test_an_unknown_class_gets_a_recipe(tmp_path, capsys):
    argv = ["probe", "--optimizer", "tests.studies.probe_optimizers:Orthogonal", "--quick", "--out", str(tmp_path)]
    assert main(argv) == 0
    text = capsys.readouterr().out
    assert "steps as declared of muon" in text
    assert "steps are proportional to the learning rate" in text
    assert "one step takes off lr x weight_decay of a weight" in text
    proposal = json.loads((tmp_path / "probe.json").read_text())["proposal"]
    assert main(["recipe", "--optimizer", "muon", "--json"]) == 0
    muon = json.loads(capsys.readouterr().out)
    for role in ("input", "hidden", "output"):
        assert proposal["recipe"]["roles"][role] == muon["roles"][role]


@pytest.mark.parametrize(
    ("name", "tolerance", "verdict", "status"),
    [("muon", "0.15", "PASS", 0), ("soap", "0.15", "FAIL", 3), ("adamw", "0.06", "UNCLEAR", 4)],
)
def test_one_of_ours(tmp_path, monkeypatch, capsys, measured_once, name, tolerance, verdict, status):
    """SOAP is found to differ; with noise that is as large as the tolerance, nothing can be told."""
    monkeypatch.setattr(measure, "run_all", measured_once)
    out = tmp_path / "deep" / name
    argv = ["probe", "--optimizer", name, "--quick", "--out", str(out), "--tolerance", tolerance, "--json"]
    assert main(argv) == status
    short = json.loads(capsys.readouterr().out)
    assert (out / "probe.png").read_bytes().startswith(b"\x89PNG")
    result = json.loads((out / "probe.json").read_text())
    assert result["findings"][0]["verdict"] == verdict
    assert result["versions"]["torch"].startswith("2.")
    assert result["settings"]["widths"] == [32, 64, 128]
    assert len(result["runs"]) == 5 * 4
    assert short["findings"] == result["findings"]
    assert "runs" not in short


def test_arguments_reach_the_rule(tmp_path):
    argv = ["probe", "--optimizer", "muon", *TINY, "--out", str(tmp_path), "--arguments", '{"momentum": 0.5}']
    directions = []
    for words in (argv, argv[:-2]):
        main(words)
        found = json.loads((tmp_path / "probe.json").read_text())
        directions.append(found["runs"][0]["measured"]["hidden"]["direction"])
        assert found["facts"]["arguments"] == ({"momentum": 0.5} if words is argv else {})
    assert directions[0][0] == pytest.approx(directions[1][0], rel=1e-5)  # step 1 knows no momentum
    assert directions[0][-1] != pytest.approx(directions[1][-1], rel=1e-3)


def test_all_writes_one_table_and_ctrl_c_loses_one_probe_alone(tmp_path, monkeypatch, capsys, measured_once):
    monkeypatch.setattr(measure, "run_all", measured_once)
    chosen = {name: FAMILIES[name] for name in ("muon", "soap", "adamw")}
    monkeypatch.setattr(measure, "FAMILIES", chosen)
    real = Subject.__init__

    def interrupted(self, name, *rest):
        if name == "adamw":
            raise KeyboardInterrupt
        real(self, name, *rest)

    monkeypatch.setattr(Subject, "__init__", interrupted)
    assert main(["probe", "--all", "--quick", "--out", str(tmp_path)]) == 130
    assert "interrupted" in capsys.readouterr().err
    table = (tmp_path / "table.md").read_text()
    assert "**muon**: PASS | input | -1/2, 0 | -0.50 ±" in table
    assert "**soap**: FAIL" in table
    assert "✗" in table
    assert (tmp_path / "soap" / "probe.png").exists()
    assert not (tmp_path / "adamw").exists()
