"""make itself: what it refuses before it does anything."""

import os
import re
import shlex
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
        (["sweep"], "make sweep needs EXPERIMENT=NAME; it can be: lr_depth lr_depth_adamw "),
        (["sweep", "EXPERIMENT=lr_wdith"], "there is no recipes/experiment/lr_wdith.yaml; it can be: lr_depth "),
        (["sweep", "EXPERIMENT=tune"], "tune takes from a target what its file does not name; make tune PROXY=tune "),
        (["submit", "EXPERIMENT=tune_wd"], "tune_wd takes from a target what its file does not name; make tune PROXY="),
        (["coord-check", "LN=no"], "LN=no; expected 1 or 0"),
        (["submit", "DRY=false"], "DRY=false; expected 1 or 0"),
        (
            ["train", "CARD=data/austen.yaml", "DATA=data/prepared/x"],
            "CARD=data/austen.yaml is a corpus to prepare",
        ),
        (["submit", "EXPERIMENT=lr_wdith"], "there is no recipes/experiment/lr_wdith.yaml; it can be: lr_depth "),
        (["report"], "make report needs EXPERIMENT=NAME; it can be: lr_depth "),
        (
            ["sweep", "EXPERIMENT=lr_width", "SEED=7", "OPT=sgd"],
            "make sweep takes no OPT SEED, but ARGS EXPERIMENT; a sw",
        ),
        (["submit", "EXPERIMENT=lr_width", "STEPS=9"], "make submit takes no STEPS, but ACCOUNT ARGS CPUS DRY "),
        (["tune", "EXPERIMENT=tune_wd"], "make tune takes no EXPERIMENT, but "),
        (["coord-check", "DATA=data/prepared/mine"], "make coord-check takes no DATA, but "),
        (
            ["data", "evaluate", "STEPS=9"],
            "make data evaluate takes no STEPS, but ARGS CARD OPT PARAM RUN SIZE TOKENIZER",
        ),
    ],
)
def test_what_does_not_exist_is_refused_by_name(words, message):
    told = make(*words)
    assert told.returncode == 2
    assert f"error: {message}" in told.stderr
    assert not told.stdout


def test_a_card_may_have_another_name_than_its_file(tmp_path):
    """Its corpus is where make looks for it."""
    (tmp_path / "mine.yaml").write_text("name: other\n")
    told = make("--dry-run", "data", f"CARD={tmp_path}/mine.yaml", "TOKENIZER=bytes").stdout
    assert f"data prepare {tmp_path}/mine.yaml --tokenizer bytes --out data/prepared/mine-bytes\n" in told


@pytest.mark.parametrize(
    ("results", "out"),
    [
        ("docs/results/lr_width.csv", "runs/reports/lr_width"),
        ("runs/sweeps/mine/results.csv", "runs/sweeps/mine/"),
        ("docs/results", "docs/results"),
    ],
)
def test_reports_of_several_tables_in_a_folder_do_not_replace_each_other(results, out):
    assert f"report transfer {results} --out {out} \n" in make("--dry-run", "report", f"RESULTS={results}").stdout


@pytest.mark.parametrize("word", ["STEPS=5", "PROXY=tune", "COORD_LR_sgd=1", "VENV=elsewhere", "GPUS=2", "LN=0"])
def test_what_exists_is_not(word):
    assert make("help", word).returncode == 0


def commands():
    """Every make command of the README and the docs; a verb alone is a noun there."""
    for page in (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))):
        text = page.read_text()
        blocks = "\n".join(re.findall(r"^```\n(.*?)^```", text, re.S | re.M))
        yield from re.findall(r"^ *(make [^#\n]*)", blocks, re.M)
        yield from re.findall(r"`(make [\w-]+ [^`\n]*)`", text)


def test_no_command_of_the_docs_is():
    found = {command.strip() for command in commands() if "..." not in command and "NAME" not in command}
    assert {"make train", "make sweep EXPERIMENT=lr_width", "make tune SIZE=xl ARGS=--dry-run"} <= found
    told = {command: make("--dry-run", *shlex.split(command)[1:]).stderr for command in sorted(found)}
    refused = {command: why for command, why in told.items() if "*** error:" in why}
    assert not refused
