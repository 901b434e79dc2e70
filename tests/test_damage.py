"""Every file that the program writes, cut short at five places, and with one bit flipped at five: what comes of it.

    python -m tests.test_damage

prints the table that docs/guide/damage.md shows and explains. The files are real ones of tiny runs.
"""

import contextlib
import io
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest

from mup_lightning import tables
from mup_lightning.config.load import build_config
from mup_lightning.data import prepare as preparing
from mup_lightning.data.card import load_card
from mup_lightning.data.shards import Manifest, TokenStore
from mup_lightning.data.sources import Sources
from mup_lightning.errors import UserError
from mup_lightning.files import write_atomic, write_json, yaml_text
from mup_lightning.slurm.submit import refuse_second_job
from mup_lightning.studies.coordinates.report import read_check
from mup_lightning.studies.features.report import read_run
from mup_lightning.studies.sweep.grid import expand
from mup_lightning.studies.sweep.results import read_trials
from mup_lightning.studies.sweep.run import run_trials
from mup_lightning.studies.sweep.spec import load
from mup_lightning.studies.transfer.losses import read_losses
from mup_lightning.training.evaluate import evaluate
from mup_lightning.training.export import export
from mup_lightning.training.run import RunFolder, plain
from mup_lightning.training.train import train
from tests.conftest import tiny_config, write_corpus
from tests.studies.coordinate_runs import result
from tests.studies.sweeps import tiny_sweep, write

PAGE = Path(__file__).parents[1] / "docs" / "guide" / "damage.md"


def make(root):
    """A folder with a file of every kind."""
    corpus = write_corpus(root / "corpus")
    config = tiny_config(corpus, root / "runs", **{"trainer.max_steps": 2, "schedule.warmup_steps": 1})
    train(config, progress=False)
    write_json(root / "runs" / "tiny" / "slurm" / "job.json", {"job": "1234"})
    write_atomic(root / "tuned.yaml", yaml_text(plain(asdict(config)), "# Tuned on small models.\n"))
    content = tiny_sweep(corpus, vary={"seed": [0, 1]})
    content["sweep"]["set"] |= {"trainer.max_steps": 2, "schedule.warmup_steps": 1}
    run_trials(expand(load(write(root, content))), root / "sweep", 0)
    export(root / "runs" / "tiny", root / "exported", "plain")
    result().write(root / "coordinates.json")
    begin(root)
    return root


def begin(root):
    """A preparation that was killed after its first journal."""
    own = preparing.write_json

    def killed(*arguments):
        own(*arguments)
        raise KeyboardInterrupt

    preparing.write_json = killed
    with contextlib.suppress(KeyboardInterrupt):
        go_on(root)
    preparing.write_json = own


def go_on(root):
    card = load_card(root / "corpus" / "card.yaml")
    return preparing.prepare(card, root / "begun", "bytes", shard_tokens=6_000, progress=False)


def read_corpus(root):
    splits = [TokenStore.open(root / "corpus" / "prepared", split) for split in ("train", "val")]
    return Manifest.load(root / "corpus" / "prepared"), [store.windows([0], 16).tolist() for store in splits]


def read_begun(root):
    go_on(root)
    return [(TokenStore.open(root / "begun", split).manifest, split) for split in ("train", "val")]


def read_exported(root):
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=root / "exported", capture_output=True, text=True)
    if done.returncode:
        raise UserError(done.stdout + done.stderr)


CASES = {
    "runs/tiny/config.yaml": ("train -c, figure", lambda root: build_config([root / "runs/tiny/config.yaml"])),
    "runs/tiny/result.json": (
        "train with resume=auto",
        lambda root: RunFolder(tiny_config("corpus", root / "runs")).finished_result(),
    ),
    "runs/tiny/tensorboard/events*": ("figure", lambda root: read_run(root / "runs/tiny").norms),
    "runs/tiny/slurm/job.json": ("submit", lambda root: refuse_second_job(root / "runs/tiny")),
    **{
        f"runs/tiny/checkpoints/step_00000002/{name}": (
            "evaluate, export, resuming",
            lambda root: evaluate(root / "runs/tiny")["validation_loss"],
        )
        for name in ("checkpoint.json", "rank_00000.safetensors", "state.ckpt")
    },
    **{
        f"corpus/prepared/{name}": ("train, data verify", read_corpus)
        for name in ("manifest.json", "train-00000.bin", "val-00000.bin")
    },
    "corpus/prepared/sources.json": ("data prepare", lambda root: Sources.load(root / "corpus/prepared")),
    **{f"begun/{name}": ("data prepare, going on", read_begun) for name in ("journal.json", "*.bin")},
    "sweep/trials/*.json": ("sweep, tune", lambda root: sorted(map(str, read_trials(root / "sweep").items()))),
    "sweep/results.csv": ("report", lambda root: read_losses(root / "sweep").to_dict()),
    "coordinates.json": ("coord-check --table", lambda root: read_check(root / "coordinates.json")),
    "tuned.yaml": ("train -c", lambda root: build_config([root / "tuned.yaml"])),
    **{f"exported/{name}": ("sha256sum -c SHA256SUMS", read_exported) for name in ("config.json", "model.safetensors")},
}
"""Pattern of a file -> who reads it, and how."""


def damages(content):
    """Five cuts and five flipped bits: (kind, content)."""
    size = len(content)
    for place in (0, size // 4, size // 2, 3 * size // 4, size - 1):
        yield "cut", content[:place]
    for number in range(5):
        place = size * (2 * number + 1) // 10
        yield "flipped", content[:place] + bytes([content[place] ^ 1 << number]) + content[place + 1 :]


def outcome(root, name, read, wanted):
    """What comes of reading: one word."""
    err = io.StringIO()
    try:
        with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
            found = read(root)
    except UserError as error:
        return "refused" if name in str(error) or name in err.getvalue() else f"refused without its name: {error}"
    if name in err.getvalue():
        return "noted"
    return "harmless" if found == wanted else "used"


def outcomes(made, scratch, pattern):
    """Outcomes of every damage to every file of a pattern: kind -> outcome -> how often."""
    _, read = CASES[pattern]
    shutil.copytree(made, scratch / "whole", dirs_exist_ok=True)
    wanted, found = read(scratch / "whole"), {"cut": Counter(), "flipped": Counter()}
    for file in sorted(made.glob(pattern)):
        for number, (kind, content) in enumerate(damages(file.read_bytes())):
            root = scratch / str(number)
            shutil.copytree(made, root, dirs_exist_ok=True)
            target = root / file.relative_to(made)
            target.write_bytes(content)
            found[kind][outcome(root, target.name, read, wanted)] += 1
            shutil.rmtree(root)
    return found


def row(pattern, found):
    """A line of the table. Where times or paths are in a file, how often each outcome occurs depends on them."""
    return [f"`{pattern}`", CASES[pattern][0], *(", ".join(sorted(found[kind])) for kind in found)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make(tmp_path_factory.mktemp("damage"))


@pytest.mark.parametrize("pattern", CASES)
def test_damage_is_named_and_the_page_says_so(made, tmp_path, pattern):
    found = outcomes(made, tmp_path, pattern)
    assert set(found["cut"] | found["flipped"]) <= {"refused", "noted", "harmless"}
    assert found["flipped"]["refused"] + found["flipped"]["noted"] > 0
    promised = next(line for line in PAGE.read_text().splitlines() if line.startswith(f"| `{pattern}` |"))
    for kind, words in zip(found, promised.split("|")[3:5], strict=True):
        assert set(found[kind]) <= set(words.strip().split(", ")), kind


def test_every_file_that_is_written_is_in_the_table(made):
    ours = {path.relative_to(made) for path in made.rglob("*") if path.is_file()}
    ours -= {Path("corpus/docs.jsonl"), Path("corpus/card.yaml"), Path("sweep.yaml")}
    covered = {file.relative_to(made) for pattern in CASES for file in made.glob(pattern)}
    sums = {path for path in ours if path.name == "SHA256SUMS"}  # and hparams.yaml, which nothing reads
    assert {str(path) for path in ours - covered - sums} <= {"runs/tiny/tensorboard/hparams.yaml"}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        whole = make(Path(folder) / "made")
        lines = [row(pattern, outcomes(whole, Path(folder) / re.sub(r"\W", "", pattern), pattern)) for pattern in CASES]
        print(tables.markdown([["file", "read by", "cut short", "a bit flipped"], *lines]))
