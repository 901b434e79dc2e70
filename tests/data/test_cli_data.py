import json
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


def test_the_order_of_samples_and_help_import_nothing_heavy():
    code = (
        "import sys\n"
        "import mup_lightning.data.sampler\n"
        "from mup_lightning.cli.main import main\n"
        "main(['data', 'prepare', '--help'])\n"
        "heavy = {'torch', 'datasets', 'tiktoken', 'lightning', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "example:" in done.stdout
