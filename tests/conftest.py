"""A tiny prepared corpus and a tiny configuration, shared by all tests that train."""

import json
import os
import random
from functools import partial
from pathlib import Path

import pytest

# Tiny models gain nothing from threads, and tests that share the cores with other processes lose much by them.
os.environ["OMP_NUM_THREADS"] = "1"
# Processes that tests start begin quickly; this one imports everything as it is.
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(Path(__file__).parent / "startup"), os.environ.get("PYTHONPATH")])
)

SLOW = (
    "benchmarks distributed slurm "
    "test_assumptions test_assumptions_verdict test_coordinates test_coordinates_faults "
    "test_coordinate_report test_coord_check_verb test_probe test_probe_verb test_sweep_run test_tune test_workers "
    "test_damage test_full_disk test_transfer_noise test_law test_tune_law test_processes "
    "test_resume test_optimizers test_export test_memory"
).split()
"""Folders and files whose tests train for long or start many processes; `make test-fast` leaves them out."""


def pytest_collection_modifyitems(items):
    """Mark them as slow."""
    for item in items:
        if {item.path.parent.name, item.path.stem} & set(SLOW):
            item.add_marker(pytest.mark.slow)


WORDS = "the cat sat on a mat and saw that it was good for one very long day in may".split()


def write_corpus(folder, seed=0, documents=60):
    """Documents with structure to learn, prepared as bytes."""
    from mup_lightning.data.card import load_card
    from mup_lightning.data.prepare import prepare

    chance = random.Random(seed)
    folder.mkdir(parents=True)
    lines = [
        json.dumps({"text": " ".join(chance.choice(WORDS) for _ in range(80)) + ".", "n": n}) for n in range(documents)
    ]
    (folder / "docs.jsonl").write_text("\n".join(lines))
    (folder / "card.yaml").write_text(
        "name: tiny\nsource: {kind: jsonl, files: docs.jsonl}\ntext_column: text\n"
        "validation: {fraction: 0.2, seed: 0}\nlicence: none\ndescription: for tests\n"
    )
    prepare(load_card(folder / "card.yaml"), folder / "prepared", tokenizer="bytes", progress=False)
    return folder / "prepared"


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """Folder of a prepared corpus of about 20,000 bytes."""
    return write_corpus(tmp_path_factory.mktemp("corpus") / "tiny")


TINY = {
    "model": {"width": 32, "depth": 2, "heads": 2, "context": 16},
    "recipe": {"base_width": 16, "base_depth": 1, "weight_decay": 0.1, "eps": 1e-8},
    "data": {"tokenizer": "bytes", "batch_size": 8, "micro_batch": 4, "val_tokens": 256},
    "trainer": {
        "max_steps": 10,
        "checkpoint_every": 4,
        "validate_every": 5,
        "log_every": 2,
        "feature_norms_every": 3,
        "accelerator": "cpu",
    },
    "run": {"name": "tiny"},
}


def tiny_config(corpus, root, **changes):
    """The configuration of a short run in a folder `root`; changes: {"section.key": value}.

    It is validated on few tokens: on all of them ("data.val_tokens": None) that would take longer than the training.
    """
    from mup_lightning.config.load import build_config

    return build_config([TINY, {"data.path": str(corpus), "run.root": str(root)}, changes])


@pytest.fixture
def refused(capsys):
    """refused(argv): the one line in which the program refuses a command line, after "error: "."""
    from mup_lightning.cli.main import main

    def line(argv, status=1):
        assert main([str(word) for word in argv]) == status
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith("error: ")
        assert printed.err.count("\n") == 1
        return printed.err.removeprefix("error: ")

    return line


@pytest.fixture
def tiny(corpus, tmp_path):
    """Makes configurations: tiny(**{"section.key": value}); see `tiny_config`."""
    return partial(tiny_config, corpus, tmp_path / "runs")
