"""make passes words on to the program, in an order in which options win over files."""

import os
import shlex
import subprocess
from functools import cache
from pathlib import Path

import pytest

from mup_lightning.cli.main import VERBS, parse

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A virtual environment that make takes for a complete one."""
    folder = tmp_path_factory.mktemp("venv")
    (folder / "bin").mkdir()
    for file in (".run", ".test", ".lint", "bin/python"):
        (folder / file).touch()
    return folder


@cache
def make(installed, *words):
    """What make would run."""
    environment = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    command = ["make", "--dry-run", f"VENV={installed}", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=environment)
    return done.stdout.replace("\\\n", "").replace(f"{installed}/bin/", ""), done.stderr


def typed(installed, *words):
    """The commands of the program that make would run, as the shell divides them."""
    lines = make(installed, *words)[0].splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("mup-lightning ")]


@pytest.mark.parametrize(
    ("words", "command"),
    [
        ("data CARD=data/mine.yaml TOKENIZER=bytes", "data prepare data/mine.yaml tokenizer=bytes "),
        ("sweep EXPERIMENT=lr_width ARGS=--dry-run", "sweep experiment=lr_width --dry-run"),
        ("sweep EXPERIMENT=lr_width SEED=7", "sweep experiment=lr_width seed=7"),  # which the program refuses
        ("submit EXPERIMENT=lr_width TASKS=8", "submit slurm=default sweep=recipes/experiment/lr_width.yaml tasks=8"),
        ("tune SIZE=xl PROXY=tune_wd", "tune sweep=recipes/experiment/tune_wd.yaml -c recipes/gpt2.yaml size=xl "),
        ("report EXPERIMENT=lr_width", "report transfer runs/sweeps/lr_width out=runs/sweeps/lr_width"),
        ("report RESULTS=some/mine.csv ARGS=--json", "report transfer some/mine.csv out=runs/reports/mine --json"),
        ("report RESULTS=mine/results.csv", "report transfer mine out=mine"),
        ("probe OPT=adamw", "probe optimizer=adamw"),
        ("probe ARGS=--all", "probe --all"),
        ("coord-check OPT=sgd LN=0", "coord-check optimizer=sgd experiment=coord_check model.layer_norm=0"),
        ("coord-check AXIS=both", "coord-check optimizer=muon_kimi experiment=coord_check model.depth=4 axis=both"),
        ("evaluate SIZE=xl OPT=adamw", "evaluate runs/xl-adamw-mup"),
        ("export RUN=mine", "export runs/mine out=exported/mine"),
        ("figure RUN=mine", "figure runs/mine"),
        (
            "train MODEL=llama",
            "train -c recipes/gpt2.yaml size=nano model=llama optimizer=muon_kimi param=mup run=nano-llama-",
        ),
        ("coord-check MODEL=llama", "coord-check optimizer=muon_kimi experiment=coord_check model=llama"),
        ("export SIZE=xl MODEL=llama", "export runs/xl-llama-muon_kimi-mup"),
    ],
)
def test_targets_are_commands_of_the_program(installed, words, command):
    assert shlex.join(typed(installed, *words.split())[-1]).startswith(command.strip())


def test_a_training_from_variables(installed, tmp_path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    (tmp_path / "one.yaml").write_text("recipe: {lr: 1, weight_decay: 2}\n")
    (tmp_path / "two.yaml").write_text("model: {width: 512}\nrecipe: {weight_decay: 3}\nrun: {name: own}\n")
    files = f"CONFIG={tmp_path}/one.yaml {tmp_path}/two.yaml"
    words = "SIZE=xl OPT=adamw STRATEGY=zero1 PARAM=sp DEVICES=2 BRANCH_DEPTH=1 STEPS=50 BATCH=8 LR=0.01 RESUME=last"
    more = ("SEED=3", "TOKENIZER=bytes", "ARGS=--model.dropout 0.1")
    verb, *rest = typed(installed, "train", *words.split(), files, *more)[-1]
    (config,) = parse(VERBS[verb], rest)
    assert (config.model.width, config.model.depth, config.model.dropout, config.seed) == (512, 48, 0.1, 3)
    recipe, trainer, run = config.recipe, config.trainer, config.run
    assert (recipe.optimizer, recipe.parametrization, recipe.branch_depth) == ("adamw", "sp", 1)
    assert (recipe.lr, recipe.weight_decay) == (0.01, 3)
    assert (trainer.strategy, trainer.devices, trainer.max_steps, config.data.batch_size) == ("zero1", 2, 50, 8)
    assert (run.name, run.resume, config.data.path) == ("own", "last", "data/prepared/austen-bytes")


@pytest.mark.parametrize(("words", "strategy"), [("GPUS=8", "ddp"), ("GPUS=1", "single"), ("NODES=2", "ddp")])
def test_a_job_of_several_processes_gets_a_strategy(installed, monkeypatch, words, strategy):
    monkeypatch.chdir(REPOSITORY)
    verb, *rest = typed(installed, "submit", words, "SLURM=default", "MEM=9G", "DRY=1")[-1]
    settings, config = parse(VERBS[verb], rest)
    assert config.trainer.strategy == strategy
    assert (settings.dry, settings.slurm.memory) == (True, "9G")


def test_a_corpus_is_prepared_on_demand_but_not_one_that_is_given(installed):
    """Every time, so that a card or files that have changed are noticed."""
    prepare = "data prepare mine.yaml --tokenizer bytes --out data/prepared/mine-bytes > /dev/null".split()
    for target in ("train", "tune", "submit"):
        assert prepare in typed(installed, target, "CARD=mine.yaml", "TOKENIZER=bytes")
    assert "data prepare" not in make(installed, "train", "DATA=elsewhere")[0]
    assert "give CARD= to prepare a corpus, or DATA=" in make(installed, "train", "CARD=mine.yaml", "DATA=x")[1]


def test_what_is_in_a_value_is_no_business_of_the_shell(installed):
    odd = "#two words&b;c|d>e it's \\ \""
    for target in ("evaluate", "export", "figure"):
        assert typed(installed, target, f"RUN={odd}")[-1][1] == f"runs/{odd}"
    for target in ("train", "tune", "submit"):
        words = typed(installed, target, f"RUN={odd}", f"DATA=my {odd}")[-1]
        assert {f"run={odd}", f"data=my {odd}"} <= set(words)
        assert not {"&", ";", "|", ">", "1"} & set(words)
        card, out = f"{odd}.yaml", f"data/prepared/{odd}-gpt2"
        assert ["data", "prepare", card, "--tokenizer", "gpt2", "--out", out] in [
            words[:7] for words in typed(installed, target, f"CARD={card}")
        ]
    assert typed(installed, "data", f"CARD={odd}")[-1][:3] == ["data", "prepare", odd]
    assert typed(installed, "report", f"RESULTS={odd}")[-1][:3] == ["report", "transfer", odd]


def test_a_misspelt_variable_reaches_the_program_before_anything_is_prepared(installed):
    first = make(installed, "train", "STPES=5")[0].splitlines()[0]
    assert first.startswith("mup-lightning config ")
    assert "stpes=5" in first
