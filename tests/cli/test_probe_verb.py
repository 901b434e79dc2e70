"""`mup-lightning probe`: what it writes, says, refuses, and how it ends."""

import json

import pytest

from mup_lightning.cli.main import main
from mup_lightning.spectral.families import FAMILIES
from mup_lightning.studies.probe.candidate import Candidate

TINY = ["--quick", "--widths", "16,32,64", "--depths", "1,2,4", "--seeds", "2"]


def test_one_of_ours(tmp_path, capsys):
    out = tmp_path / "deep" / "muon"
    assert main(["probe", "--optimizer", "muon", "--quick", "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert "muon is what its family declares: all 12 exponents agree within 0.15." in printed.out
    assert "replaced" not in printed.err
    assert (out / "probe.png").read_bytes().startswith(b"\x89PNG")
    result = json.loads((out / "probe.json").read_text())
    assert result["verdict"] == "consistent"
    assert result["versions"]["torch"].startswith("2.")
    assert result["settings"]["widths"] == [32, 64, 128]
    assert len(result["networks"]) == 5 * 4
    assert {"losses", "roles", "seed"} <= result["networks"][0].keys()

    assert main(["probe", "--optimizer", "muon", "--quick", "--out", str(out), "--json"]) == 0
    printed = capsys.readouterr()
    assert "probe.json was there and has been replaced" in printed.err
    assert json.loads(printed.out) == {key: value for key, value in result.items() if key != "networks"}


def test_an_unknown_class_gets_a_recipe(tmp_path, capsys):
    out = str(tmp_path / "x")
    argv = ["probe", "--optimizer", "tests.studies.probe_optimizers:Orthogonal", "--quick", "--out", out]
    assert main([*argv, "--json"]) == 0
    proposal = json.loads(capsys.readouterr().out)["proposal"]
    assert main(["recipe", "--optimizer", "muon", "--json"]) == 0
    muon = json.loads(capsys.readouterr().out)
    assert proposal["recipe"].keys() == muon.keys()
    for role in ("input", "hidden", "output"):
        assert proposal["recipe"]["roles"][role] == muon["roles"][role]
    assert main(argv) == 0
    text = capsys.readouterr().out
    assert "behaves as the orthogonal family" in text
    assert "steps are proportional to the learning rate" in text
    assert "one step takes off lr x weight_decay of a weight" in text


@pytest.mark.parametrize(("verdict", "status"), [("inconsistent", 3), ("unclear", 4)])
def test_exit_status_tells_verdicts_from_errors(tmp_path, verdict, status):
    """SOAP is found to differ; with noise that is as large as the tolerance, nothing can be told."""
    name, tolerance = {"inconsistent": ("soap", "0.15"), "unclear": ("adamw", "0.02")}[verdict]
    argv = ["probe", "--optimizer", name, "--quick", "--out", str(tmp_path), "--tolerance", tolerance]
    assert main(argv) == status
    assert json.loads((tmp_path / "probe.json").read_text())["verdict"] == verdict


def test_arguments_reach_the_rule(tmp_path):
    argv = ["probe", "--optimizer", "muon", *TINY, "--out", str(tmp_path), "--arguments", '{"momentum": 0.5}']
    main(argv)
    with_it = json.loads((tmp_path / "probe.json").read_text())
    main(argv[:-2])
    without = json.loads((tmp_path / "probe.json").read_text())
    assert with_it["facts"]["arguments"] == {"momentum": 0.5}
    first, second = (found["networks"][0]["roles"]["hidden"]["direction"] for found in (with_it, without))
    assert first[0] == pytest.approx(second[0], rel=1e-5)  # step 1 knows no momentum
    assert first[-1] != pytest.approx(second[-1], rel=1e-3)


def test_all_writes_one_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("mup_lightning.cli.probe.FAMILIES", {name: FAMILIES[name] for name in ("muon", "soap")})
    assert main(["probe", "--all", "--quick", "--out", str(tmp_path)]) == 3
    table = (tmp_path / "table.md").read_text()
    assert "**muon**: consistent | input | -1/2, 0 | -0.50 ±" in table
    assert "**soap**: inconsistent" in table
    assert "✗" in table
    assert (tmp_path / "soap" / "probe.png").exists()


def test_ctrl_c_loses_one_probe_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("mup_lightning.cli.probe.FAMILIES", {name: FAMILIES[name] for name in ("muon", "adamw")})
    real = Candidate.__init__

    def interrupted(self, name, *rest):
        if name == "adamw":
            raise KeyboardInterrupt
        real(self, name, *rest)

    monkeypatch.setattr(Candidate, "__init__", interrupted)
    assert main(["probe", "--all", *TINY, "--out", str(tmp_path)]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert (tmp_path / "muon" / "probe.json").exists()
    assert "**muon**" in (tmp_path / "table.md").read_text()
    assert not (tmp_path / "adamw").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "expected either --optimizer NAME or --all"),
        (["--all", "--optimizer", "muon"], "expected either --optimizer NAME or --all"),
        (["--optimizer", "muonn"], "--optimizer is 'muonn'; expected sgd, adamw"),
        (["--optimizer", "nowhere:Adam"], "cannot import nowhere"),
        (["--optimizer", "torch.optim:LBFGS"], "needs a closure"),
        (["--optimizer", "muon", "--widths", "a,b"], "--widths is 'a,b'; expected whole numbers"),
        (["--optimizer", "muon", "--widths", "64,32,16"], "--widths is 64,32,16; expected at least three"),
        (["--optimizer", "muon", "--arguments", "{"], "--arguments is not JSON"),
        (["--optimizer", "muon", "--arguments", "[1]"], "--arguments is [1]; expected names and values"),
        (["--optimizer", "muon", "--arguments", '{"steps": 0}'], "rules.muon.steps is 0"),
        (["--optimizer", "lion", "--arguments", '{"eps": 1}'], "'eps', which lion does not know"),
        (["--all", "--arguments", "{}"], "--arguments goes with --optimizer"),
        (["--optimizer", "muon", "--out", "FILE"], "is not a folder; expected one"),
    ],
)
def test_mistakes_are_one_clear_line(tmp_path, argv, message, capsys):
    (tmp_path / "file").write_text("x")
    argv = [str(tmp_path / "file") if word == "FILE" else word for word in argv]
    assert main(["probe", *argv]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert "Traceback" not in error
