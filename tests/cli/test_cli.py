"""The command line: help, errors, and the recipes that ship."""

import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml

from mup_lightning.cli.main import VERBS, main
from mup_lightning.config.load import build, config_parser, parse
from mup_lightning.config.schema import Config
from mup_lightning.errors import UserError
from mup_lightning.training.checkpoint import plain
from mup_lightning.training.module import build_training

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def names(folder):
    return sorted(path.stem for path in (RECIPES / folder).glob("*.yaml"))


def compose(*files, options=()):
    parser = config_parser("test", "", "")
    argv = [item for file in files for item in ("-c", str(RECIPES / f"{file}.yaml"))]
    return build(parser, parse(parser, [*argv, *options]))


def test_gpt2_yaml_is_the_defaults():
    written = yaml.safe_load((RECIPES / "gpt2.yaml").read_text())
    assert written == plain(asdict(Config())) | {"model": {**asdict(Config().model), "vocab_size": None}}
    assert compose("gpt2") == Config()


SHAPES = {"base": (256, 4), "small": (768, 12), "medium": (1024, 24), "large": (1280, 36), "xl": (1600, 48)}


def test_the_sizes_are_all_there():
    assert names("size") == sorted([*SHAPES, "nano"])
    for size, shape in SHAPES.items():
        model = compose("gpt2", f"size/{size}").model
        assert (model.width, model.depth, model.context, model.head_dim) == (*shape, 1024, 64)


@pytest.mark.parametrize("size", names("size"))
@pytest.mark.parametrize("optimizer", names("optimizer"))
@pytest.mark.parametrize("strategy", names("strategy"))
def test_every_combination_parses_and_builds_on_the_meta_device(size, optimizer, strategy):
    config = compose("gpt2", f"size/{size}", f"optimizer/{optimizer}", f"strategy/{strategy}")
    assert config.recipe.optimizer == optimizer
    assert config.trainer.strategy == strategy
    model, built = build_training(config, device="meta")
    parameters = [p for group in built.param_groups for p in group["params"]]
    assert len(parameters) == len(list(model.parameters()))
    assert all(p.device == torch.device("meta") for p in parameters)
    if size == "xl":
        assert sum(p.numel() for p in parameters) == 1_557_686_400  # GPT-2 XL with 50304 instead of 50257 symbols


def test_later_files_win_and_options_win_over_files(tmp_path):
    extra = tmp_path / "extra.yaml"
    extra.write_text("model: {width: 512}\nseed: 7\n")
    config = compose("gpt2", "size/base", options=["-c", str(extra), "--model.depth", "8"])
    assert (config.model.width, config.model.depth, config.seed, config.model.context) == (512, 8, 7, 1024)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.widht", "3"], r"unknown option model\.widht; did you mean model\.width\?"),
        (["--model.widt", "3"], r"unknown option model\.widt; did you mean model\.width\?"),  # no abbreviations
        (["--model.width", "x"], r'option "model\.width": Expected a int\. Got value: x'),
        (["--recipe.optimizer", "muonn"], r"recipe\.optimizer.*one of muon_kimi, adamw, muon, .*\. Got value: muonn"),
        (["--model.width", "100", "--model.heads", "7"], r"model\.width is 100 and model\.heads is 7"),
        (["--trainer.devices", "2"], r"strategy single runs one process.*set trainer\.strategy ddp"),
        (["-c", "nowhere.yaml"], rf"nowhere\.yaml cannot be read: No such file or directory in {Path.cwd()}; exp"),
        (["-c", "TWICE"], r"twice\.yaml: line 3 has the key recipe a second time \(first in line 1\)"),
        (["--config=TWICE"], r"twice\.yaml: line 3 has the key recipe a second time"),
        (["-cTWICE"], r"twice\.yaml: line 3 has the key recipe a second time"),
        (["-c", "LATIN"], r"latin\.yaml is not UTF-8 text; expected a recipe"),
        (["-c", "BAD"], r"bad\.yaml: unknown option widht; did you mean model\.width\?"),
        (["-c", "WORSE"], r"worse\.yaml is not valid YAML: .*parsing"),
    ],
)
def test_bad_options_are_one_clear_line(tmp_path, options, message, capsys):
    (tmp_path / "bad.yaml").write_text("model: {widht: 3}")
    (tmp_path / "worse.yaml").write_text("model: [widht")
    (tmp_path / "twice.yaml").write_text("recipe: {optimizer: adamw}\nmodel: {depth: 2}\nrecipe: {lr: 0.1}\n")
    (tmp_path / "latin.yaml").write_bytes("# \xe9\n".encode("latin-1"))
    argv = [
        re.sub("BAD|WORSE|TWICE|LATIN", lambda name: f"{tmp_path}/{name[0].lower()}.yaml", item) for item in options
    ]
    with pytest.raises(UserError, match=message):
        build(parser := config_parser("test", "", ""), parse(parser, argv))
    assert main(["train", *argv, "--run.root", str(tmp_path / "runs")]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert "Traceback" not in printed.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "argv",
    [
        ["sweep", "FILE.yaml", "--work", "2"],
        ["report", "transfer", "TABLE.csv", "--toler", "1"],
        ["report", "best", "TABLE.csv", "--mark"],
        ["data", "prepare", "CARD.yaml", "--tok", "bytes"],
        ["recipe", "--branch", "1"],
    ],
)
def test_options_are_not_abbreviated(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    assert f"unrecognized arguments: {argv[-2] if argv[-1][0] != '-' else argv[-1]}" in capsys.readouterr().err


def test_unknown_verbs_are_refused(capsys):
    assert main(["trian"]) == 2
    assert "unknown verb 'trian'; expected one of train" in capsys.readouterr().err


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_an_example_and_imports_no_torch(verb):
    code = (
        "import sys; from mup_lightning.cli.main import main\n"
        f"try: status = main([{verb!r}, '--help'])\n"
        "except SystemExit as exit: status = exit.code\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
        "assert 'datasets' not in sys.modules, 'datasets was imported'\n"
        "sys.exit(status)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert "example" in run.stdout
    assert f"mup-lightning {verb}" in run.stdout
