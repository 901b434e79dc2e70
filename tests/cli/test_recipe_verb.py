"""`mup-lightning recipe`: what it prints, refuses and imports."""

import json
import subprocess
import sys

import pytest

from mup_lightning.cli.main import main
from mup_lightning.spectral.families import FAMILIES


def printed(capsys, *argv):
    assert main(["recipe", *argv]) == 0
    return capsys.readouterr().out


def test_json_of_one_optimizer(capsys):
    found = json.loads(printed(capsys, "--optimizer", "sgd", "--branch-depth", "1", "--json"))
    assert found["optimizer"] == "sgd"
    assert found["branch_depth"] == 1
    assert found["roles"]["hidden"] == {
        "multiplier": ["0", "-1/2"],
        "init_var": ["-1", "0"],
        "lr": ["0", "0"],
        "weight_decay": ["0", "-1/2"],
        "eps": None,
    }
    assert set(found["roles"]) == {"input", "hidden", "output", "input_bias", "hidden_bias"}


def test_all_optimizers_and_texts(capsys):
    found = json.loads(printed(capsys, "--json"))
    assert [table["optimizer"] for table in found] == list(FAMILIES)
    assert "muon_kimi, k = 2" in printed(capsys, "--optimizer", "muon_kimi")
    assert "All optimizers, k = 1" in printed(capsys, "--branch-depth", "1")


def test_diff_takes_adamw_unless_told(capsys):
    assert json.loads(printed(capsys, "--diff", "completep", "--json"))["optimizer"] == "adamw"
    assert "sgd with k = 1, against muP" in printed(
        capsys, "--diff", "mup", "--optimizer", "sgd", "--branch-depth", "1"
    )


@pytest.mark.parametrize(
    ("argv", "status", "message"),
    [
        ("--diff depth-mup --optimizer lion", 1, "depth-mup has no rule for lion; compare with --optimizer adamw or"),
        ("--diff mup --variant measured", 1, "--diff compares the published rules; leave --variant measured out"),
        ("--diff pum", 1, "--diff is pum; expected one of "),
        ("--branch 1", 2, "unknown option branch; did you mean branch_depth?"),
        ("adamw", 2, "unexpected argument 'adamw'"),
    ],
)
def test_refusals(capsys, argv, status, message):
    assert main(["recipe", *argv.split()]) == status
    assert f"error: {message}" in capsys.readouterr().err


def test_it_imports_neither_torch_nor_numpy():
    code = (
        "import sys; from mup_lightning.cli.main import main\n"
        "for options in (['--optimizer', 'adamw'], ['--diff', 'mup']): assert main(['recipe', *options]) == 0\n"
        "assert not {'torch', 'numpy', 'lightning'} & sys.modules.keys()"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
