"""`mup-lightning recipe`: what it prints, refuses and imports."""

import json
import subprocess
import sys

import pytest

from mup_lightning.cli.recipe import main
from mup_lightning.errors import UserError
from mup_lightning.spectral.families import FAMILIES


def printed(capsys, *argv):
    assert main([*argv]) == 0
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


def test_json_of_all_optimizers(capsys):
    found = json.loads(printed(capsys, "--json"))
    assert [table["optimizer"] for table in found] == list(FAMILIES)
    assert {table["branch_depth"] for table in found} == {2}


def test_tables_in_text(capsys):
    assert "muon_kimi, k = 2" in printed(capsys, "--optimizer", "muon_kimi")
    assert "All optimizers, k = 1" in printed(capsys, "--branch-depth", "1")


def test_diff_takes_adamw_unless_told(capsys):
    assert json.loads(printed(capsys, "--diff", "completep", "--json"))["optimizer"] == "adamw"
    assert "sgd with k = 1, against muP" in printed(
        capsys, "--diff", "mup", "--optimizer", "sgd", "--branch-depth", "1"
    )


def test_refusals(capsys):
    with pytest.raises(UserError, match="--branch-depth is 0; expected"):
        main(["--branch-depth", "0"])
    with pytest.raises(UserError, match="depth-mup has no rule for lion; compare with --optimizer adamw or sgd"):
        main(["--diff", "depth-mup", "--optimizer", "lion"])
    with pytest.raises(UserError, match="--variant is measured, but adamw was measured as it is published"):
        main(["--optimizer", "adamw", "--variant", "measured"])
    with pytest.raises(UserError, match="--diff compares the published rules; leave --variant measured out"):
        main(["--diff", "mup", "--variant", "measured"])
    with pytest.raises(SystemExit):
        main(["--optimizer", "muonn"])
    assert "invalid choice: 'muonn'" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["--help"], ["--optimizer", "adamw"], ["--diff", "mup"]])
def test_it_imports_neither_torch_nor_numpy(argv):
    code = (
        "import sys; from mup_lightning.cli.recipe import main\n"
        f"try: main({argv!r})\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'numpy', 'lightning', 'jsonargparse'} & sys.modules.keys()"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert ("mup-lightning recipe --optimizer" in run.stdout) == (argv == ["--help"])
