import json
import re
import subprocess
import sys

from mup_lightning.cli.main import main

from .conftest import documents


def test_prepare_verify_show(make_card, tmp_path, monkeypatch, capsys):
    card = make_card([*documents(40), ""])
    monkeypatch.chdir(tmp_path)
    assert main(["data", "prepare", str(card.path), "--tokenizer", "bytes", "--quiet"]) == 0
    folder = tmp_path / "data" / "prepared" / "small-bytes"
    assert (folder / "manifest.json").exists()
    first = capsys.readouterr()
    assert first.out.startswith("prepared (data/prepared/small-bytes)")
    assert re.search(r"documents +40\n", first.out)
    assert re.search(r"skipped +1 empty\n", first.out)
    assert first.err == ""
    assert main(["data", "prepare", str(card.path), "--tokenizer", "bytes"]) == 0
    assert "already prepared, nothing to do" in capsys.readouterr().out
    assert main(["data", "verify", str(folder)]) == 0
    assert "every shard matches" in capsys.readouterr().out
    assert main(["data", "show", str(folder)]) == 0
    assert "unigram loss" in capsys.readouterr().out
    assert main(["data", "show", str(folder), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["documents"], facts["skipped"]) == (40, {"empty": 1})
    assert facts["splits"]["train"]["documents"] + facts["splits"]["val"]["documents"] == 40


def test_out_and_force(make_card, tmp_path, capsys):
    card = make_card(documents(40))
    out = str(tmp_path / "out")
    assert main(["data", "prepare", str(card.path), "--tokenizer", "bytes", "--out", out, "--quiet"]) == 0
    assert main(["data", "prepare", str(card.path), "--out", out, "--quiet"]) == 1
    assert "--force" in capsys.readouterr().err
    assert main(["data", "prepare", str(card.path), "--out", out, "--quiet", "--force"]) == 0


def test_verify_finds_damage_that_show_does_not_look_for(make_card, tmp_path, capsys):
    card = make_card(documents(40))
    out = tmp_path / "out"
    main(["data", "prepare", str(card.path), "--tokenizer", "bytes", "--out", str(out), "--quiet"])
    path = out / "val-00000.bin"
    path.write_bytes(b"\1" + path.read_bytes()[1:])
    assert main(["data", "show", str(out)]) == 0
    assert main(["data", "verify", str(out)]) == 1
    assert "val-00000.bin is damaged" in capsys.readouterr().err


def test_the_order_of_samples_and_help_import_nothing_heavy():
    code = (
        "import sys\n"
        "import mup_lightning.config.schema, mup_lightning.data.sampler\n"
        "from mup_lightning.cli.main import main\n"
        "try: main(['data', 'prepare', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'datasets', 'tiktoken', 'lightning', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "example:" in done.stdout
