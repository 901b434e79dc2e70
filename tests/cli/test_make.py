"""make itself: what it refuses before it does anything."""

import os
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def make(*words):
    environment = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    return subprocess.run(["make", *words], capture_output=True, text=True, cwd=REPOSITORY, env=environment)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "TOKENISER=bytes"], "there is no variable TOKENISER; variables are "),
        (["help", "SIZ=xl", "OPTS=adamw"], "there is no variable OPTS SIZ; variables are "),
        (["tune", "SIZE=huge"], "there is no recipes/size/huge.yaml; size can be: base large medium nano small xl"),
        (["train", "OPT=adamm"], "there is no recipes/optimizer/adamm.yaml; optimizer can be: adamw "),
        (["train", "CARD=data/mine.yaml"], "there is no data/mine.yaml; data/README.md says how to write a card"),
        (["data", "CARD=data/mine.yaml"], "there is no data/mine.yaml; data/README.md says how to write a card"),
    ],
)
def test_what_does_not_exist_is_refused_by_name(words, message):
    told = make(*words)
    assert told.returncode == 2
    assert f"error: {message}" in told.stderr
    assert not told.stdout


@pytest.mark.parametrize("word", ["STEPS=5", "PROXY=tune", "COORD_LR_sgd=1", "VENV=elsewhere", "GPUS=2", "LN=0"])
def test_what_exists_is_not(word):
    assert make("help", word).returncode == 0
