import json
import os
import subprocess
import sys

from mup_lightning.cli.main import main

from .conftest import documents


def test_prepare_verify_show(make_card, tmp_path, monkeypatch, capsys):
    card = make_card([*documents(40), ""])
    monkeypatch.chdir(tmp_path)
    prepare = ["data", "prepare", str(card.path), "--tokenizer", "bytes", "--quiet"]
    folder = tmp_path / "data" / "prepared" / "small-bytes"
    for said in ("prepared (data/prepared/small-bytes)", "already prepared, nothing to do"):
        assert main(prepare) == 0
        printed = capsys.readouterr()
        assert printed.out.startswith(said)
        assert "\ndocuments: 40\n" in printed.out
        assert "\nskipped:\n  empty: 1\n" in printed.out
        assert printed.err == ""
    assert main(["data", "show", str(folder), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["documents"], facts["skipped"]) == (40, {"empty": 1})
    assert facts["splits"]["train"]["documents"] + facts["splits"]["val"]["documents"] == 40

    assert main(["data", "verify", str(folder)]) == 0
    assert "every shard matches" in capsys.readouterr().out
    path = folder / "val-00000.bin"
    path.write_bytes(b"\1" + path.read_bytes()[1:])
    assert main(["data", "show", str(folder)]) == 0
    assert main(["data", "verify", str(folder)]) == 1
    assert "val-00000.bin is damaged" in capsys.readouterr().err

    other = ["data", "prepare", str(card.path), "--out", str(folder), "--quiet"]
    assert main(other) == 1
    assert "--force" in capsys.readouterr().err
    assert main([*other, "--force"]) == 0


COLD = """
import sys
import mup_lightning.data.sampler
from mup_lightning.cli.main import main
main(["data", "prepare", "--help"])
heavy = {"torch", "datasets", "tiktoken", "lightning", "pyarrow"} & set(sys.modules)
assert not heavy, heavy
sys.exit(main(["data", "prepare", sys.argv[1], "--out", sys.argv[2], "--quiet"]))
"""


def test_help_imports_nothing_heavy_and_no_cache_is_left_behind(make_card, tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "HF_HOME"}
    for name in ("HOME", "TMPDIR"):
        (tmp_path / name).mkdir()
        environment[name] = str(tmp_path / name)
    command = [sys.executable, "-c", COLD, str(make_card(documents(30)).path), str(tmp_path / "out")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "example:" in done.stdout
    assert not any(list((tmp_path / name).iterdir()) for name in ("HOME", "TMPDIR"))
