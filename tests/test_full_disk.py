"""A disk that is full, or read-only: one line, an exit code, nothing lost, and the same command goes on from there.

The disk is real, a file system in memory that grows a little each time, so that it is full in many places.
"""

import os
import subprocess
from dataclasses import asdict

import pytest
import yaml

from mup_lightning.cli.main import main
from mup_lightning.files import read_json
from mup_lightning.studies.coordinates import run as coordinates
from mup_lightning.training import checkpoint as checkpoints
from mup_lightning.training.run import plain
from tests.conftest import tiny_config, write_corpus
from tests.studies.coordinate_runs import result
from tests.studies.sweeps import tiny_sweep, write

SIZES = ("ro", 8, 16, 48, 200, 800, 8000)
"""Read-only, then kB."""


def mount(*arguments):
    return subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True, check=False)


@pytest.fixture
def disk(tmp_path):
    """A folder that is a file system of its own, and a function that resizes it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() or mount("-t", "tmpfs", "-o", "size=4k", "tmpfs", folder).returncode:
        pytest.skip("mounting a small file system takes root")

    def resize(size):
        done = mount("-o", "remount,ro" if size == "ro" else f"remount,rw,size={size}k", folder)
        assert not done.returncode, done.stderr

    yield folder, resize
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Everything that the verbs read: a corpus, a run, a sweep."""
    folder = tmp_path_factory.mktemp("made")
    corpus = write_corpus(folder / "corpus")
    run = folder / "run.yaml"
    run.write_text(yaml.safe_dump(plain(asdict(tiny_config(corpus, "runs")))))
    content = tiny_sweep(corpus, axis="model.width", vary={"recipe.lr": {"log2": [-8, -6]}, "model.width": [16, 32]})
    content["sweep"]["set"] |= {"trainer.max_steps": 8, "schedule.warmup_steps": 1}
    write(folder, content)
    return folder


def command(verb, made, out):
    run, sweep = str(made / "run.yaml"), str(made / "sweep.yaml")
    return {
        "prepare": f"data prepare {made}/corpus/card.yaml --out {out}/corpus --tokenizer bytes --quiet",
        "train": f"train -c {run} --run.root {out}/runs --run.resume auto",
        "sweep": f"sweep {sweep} --out {out}/sweep --workers 0",
        "report": f"report transfer {made}/reference/sweep --out {out}/report",
        "figure": f"figure {made}/reference/runs/tiny --out {out}/norms.png",
        "export": f"export {made}/reference/runs/tiny --out {out}/exported --format plain",
    }[verb].split()


def outcome(folder):
    """What a verb has written, without times and places."""
    found = {}
    for path in [folder] if folder.is_file() else sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir():
            continue
        if path.suffix in (".bin", ".safetensors", ".png"):
            found[name] = path.read_bytes()
        elif path.name in ("result.json", "transfer.json") or path.parent.name == "trials":
            value = read_json(path, "")
            found[name] = [value.get("validation_loss"), value.get("result", {}).get("loss"), value.get("groups")]
    return found


@pytest.mark.parametrize("verb", ["prepare", "train", "sweep", "report", "figure", "export"])
def test_a_full_disk_costs_nothing_that_was_there(disk, made, verb, capsys):
    folder, resize = disk
    reference = made / "reference"
    assert main(command(verb, made, reference)) == 0
    capsys.readouterr()
    failures = 0
    for size in SIZES:
        resize(size)
        before = {path: path.read_bytes() for path in folder.rglob("trials/*.json")}
        saved = set(folder.rglob("step_*"))
        code = main(command(verb, made, folder))
        err = capsys.readouterr().err
        if code == 0:
            break
        failures += 1
        assert code == 1, (size, err)
        assert [line for line in err.splitlines() if "rror" in line] == [err.splitlines()[-1]], (size, err)
        assert err.splitlines()[-1].startswith("error: "), (size, err)
        assert before == {path: path.read_bytes() for path in before}
        assert saved <= set(folder.rglob("step_*")) or len(list(folder.rglob("step_*"))) >= 2
        for path in folder.rglob("step_*"):
            checkpoints.verify(checkpoints.read(path))
        assert not list(folder.rglob("*.lock")) + list(folder.rglob("*.writer"))
    assert code == 0, err
    assert failures >= 3
    name = {"prepare": "corpus", "train": "runs", "figure": "norms.png", "export": "exported"}.get(verb, verb)
    assert outcome(folder / name) == outcome(reference / name) != {}
    assert not [path for path in folder.rglob("*") if "unfinished" in path.name]


def test_what_was_found_is_printed_before_it_is_written(disk, monkeypatch, capsys):
    folder, resize = disk
    resize(8)
    monkeypatch.setattr(coordinates, "check", lambda *_: result())
    assert main(["coord-check", "--out", str(folder / "check")]) == 1
    out, err = capsys.readouterr()
    assert "PASS" in out
    assert err.splitlines()[-1] == f"error: {folder / 'check' / 'coordinates.json'}: No space left on device"
