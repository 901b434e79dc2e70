"""The command that tune prints trains the target, with the tuned values: told by running it as far as its options."""

import os
import shlex
import subprocess
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from mup_lightning.cli.next_command import training, tuned_target
from mup_lightning.cli.options import build, config_parser, parse
from mup_lightning.training.checkpoint import plain

REPOSITORY = Path(__file__).resolve().parents[2]

FILES = {
    "sp.yaml": {"recipe": {"parametrization": "sp"}, "run": {"name": "of-a-file"}},
    "mup.yaml": {"recipe": {"parametrization": "mup", "branch_depth": 1}, "seed": 5, "trainer": {"max_steps": 7}},
    "bytes.yaml": {"data": {"path": "data/prepared/austen-bytes", "tokenizer": "bytes", "batch_size": 12}},
    "rate.yaml": {"recipe": {"lr": 0.5, "weight_decay": 0.125}, "model": {"vocab_size": 256}},
    "two.yaml": {"trainer": {"strategy": "ddp", "devices": 2}},
}
MAKE = "-c recipes/gpt2.yaml -c recipes/size/xl.yaml -c recipes/optimizer/adamw.yaml -c recipes/strategy/single.yaml"


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Recipe files in tmp_path, and a function that puts their paths into a command line."""
    monkeypatch.chdir(REPOSITORY)
    for name, content in FILES.items():
        (tmp_path / name).write_text(yaml.safe_dump(content))
    return lambda text: [item.replace("@", f"{tmp_path}/") for item in shlex.split(text)]


def parsed(argv):
    parser = config_parser("test", "", "")
    arguments = parse(parser, argv)
    return [str(file) for file in arguments.config or []], build(parser, arguments)


def run_by(command):
    """Arguments that `mup-lightning train` gets from a printed command; make is asked what it would run."""
    words = shlex.split(command)
    if words[0] == "make":
        environment = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
        told = subprocess.run(
            ["make", "-n", *words[1:]], capture_output=True, text=True, check=True, cwd=REPOSITORY, env=environment
        )
        words = shlex.split(next(line for line in told.stdout.splitlines() if "mup-lightning train" in line))
    assert words[0].endswith("mup-lightning")
    assert words[1] == "train"
    return words[2:]


def printed(argv, tmp_path, tuned):
    named, target = parsed(argv)
    file = tmp_path / "tuned.yaml"
    file.write_text(yaml.safe_dump(tuned))
    return target, training([*named, str(file)], tuned_target(target, file))


@pytest.mark.parametrize(
    ("argv", "verb"),
    [
        (f"{MAKE} --recipe.branch_depth 1 --recipe.lr 0.5 --model.dropout=0.1 --trainer.max_steps 9 --seed 2", "make"),
        # What make gives always would win over files: parametrization, corpus, tokenizer, run name.
        (f"{MAKE} -c @sp.yaml -c @bytes.yaml", "make"),
        ("-c recipes/size/nano.yaml -c @bytes.yaml -c @sp.yaml", "make"),
        # A file that follows an option wins over it.
        (f"{MAKE} --recipe.parametrization sp --seed 3 --trainer.max_steps 4 -c @mup.yaml", "make"),
        (f"{MAKE} --recipe.parametrization=sp -c @mup.yaml --seed 3 -c @bytes.yaml --data.batch_size 24", "make"),
        ("--seed 3 --model.width 64 -c @mup.yaml --trainer.max_steps 8", "mup-lightning"),
        # Files that make puts in another order.
        ("-c @two.yaml -c @mup.yaml -c @bytes.yaml -c recipes/gpt2.yaml -c recipes/strategy/single.yaml "
         "-c recipes/size/nano.yaml", "make"),
        ("-c recipes/size/xl.yaml -c @two.yaml -c recipes/optimizer/sgd.yaml -c recipes/strategy/zero1.yaml", "make"),
        # No optimizer or strategy by make's names.
        ("-c recipes/size/nano.yaml --recipe.optimizer sgd --trainer.strategy ddp --trainer.nodes 2", "make"),
        # Files that contradict each other without the options.
        (f"{MAKE} -c @rate.yaml --data.tokenizer bytes --data.path elsewhere/words", "make"),
        ("-c @two.yaml -c recipes/strategy/single.yaml -c @rate.yaml --data.tokenizer=bytes", "mup-lightning"),
        (f"{MAKE} --run.root '$HOME/a b' --run.name plain", "make"),
        (f"{MAKE} --run.name 'two words' --data.path '$(x)'", "mup-lightning"),
        ("--recipe.lr 0.001 --recipe.base_width 64 --model.heads 2", "mup-lightning"),
    ],
)  # fmt: skip
def test_the_command_trains_the_target_with_the_tuned_value(files, tmp_path, argv, verb):
    tuned = {"recipe": {"lr": 0.0123, "base_width": 96, "base_depth": 3}}
    target, command = printed(files(argv), tmp_path, tuned)
    assert command.split()[0] == verb
    found = plain(asdict(parsed(run_by(command))[1]))
    expected = plain(asdict(target))
    expected["recipe"] |= tuned["recipe"]
    assert found == expected


def test_the_command_of_make_is_short(files, tmp_path):
    argv = f"{MAKE} -c @mup.yaml --data.path data/prepared/austen-bytes --data.tokenizer bytes --run.name x-adamw-mup"
    tuned = {"recipe": {"lr": 0.5}}
    assert printed(files(f"{argv} --recipe.lr 0.1 --model.dropout 0.1"), tmp_path, tuned)[1] == (
        f"make train SIZE=xl OPT=adamw STRATEGY=single PARAM=mup TOKENIZER=bytes RUN=x-adamw-mup CARD=data/austen.yaml "
        f"CONFIG='{tmp_path}/mup.yaml {tmp_path}/tuned.yaml' ARGS='--model.dropout 0.1'"
    )


def test_a_name_that_a_run_has_is_not_printed_again(files, tmp_path):
    """A run's own config.yaml as the target: its name, and where it was resumed, belong to that run."""
    root = tmp_path / "runs"
    (root / "first").mkdir(parents=True)
    _, ran = parsed(files(f"-c @mup.yaml --run.root {root} --run.name first --run.resume last --recipe.lr 0.25"))
    config = root / "first" / "config.yaml"
    config.write_text(yaml.safe_dump(plain(asdict(ran))))
    for name in ("first-tuned", "first-tuned-2", "first-tuned-3"):
        target, command = printed(["-c", str(config)], tmp_path, {"recipe": {"lr": 0.0123}})
        found = parsed(run_by(command))[1]
        assert (found.run.name, found.run.resume) == (name, None)
        expected = plain(asdict(target))
        expected["recipe"]["lr"] = 0.0123
        expected["run"] |= {"name": name, "resume": None}
        assert plain(asdict(found)) == expected
        (root / name).mkdir()
        (root / name / "config.yaml").touch()
