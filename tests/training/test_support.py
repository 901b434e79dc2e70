"""The table of what works with what is the code that refuses."""

import json
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from mup_lightning.cli.main import main
from mup_lightning.config.schema import Config, TrainerConfig
from mup_lightning.errors import UserError
from mup_lightning.optim.optimizer import RULES
from mup_lightning.training import support
from mup_lightning.training.train import train


def config_of(corpus, tmp_path, **trainer):
    return Config.from_plain(
        {
            "model": {"width": 16, "depth": 1, "heads": 1, "context": 8},
            "data": {"path": str(corpus), "tokenizer": "bytes", "batch_size": 2, "micro_batch": 2},
            "trainer": {"max_steps": 1, "accelerator": "cpu"} | trainer,
            "run": {"root": str(tmp_path), "name": "run"},
        }
    )


def test_every_strategy_is_in_it_and_has_a_recipe():
    assert set(support.STRATEGIES) == set(get_args(get_type_hints(TrainerConfig)["strategy"]))
    assert set(support.STRATEGIES) == {file.stem for file in Path("recipes/strategy").glob("*.yaml")}


def test_every_combination_is_answered_once():
    entries = [(entry.rule, entry.strategy, entry.precision) for entry in support.table()]
    assert len(entries) == len(set(entries)) == len(RULES) * len(support.STRATEGIES) * len(support.PRECISIONS)


def test_a_whole_matrix_rule_is_refused_where_nobody_knows_where_its_matrices_are(monkeypatch, corpus, tmp_path):
    monkeypatch.setitem(support.STRATEGIES, "single", support.Parting(("states", "weights"), known=False))
    refused = {entry.rule for entry in support.table() if entry.refusal and entry.strategy == "single"}
    assert refused == {"muon", "muon_kimi", "shampoo", "soap", "sso"}
    assert "| muon_kimi | single | REFUSED | REFUSED | no | no |" in support.markdown()
    with pytest.raises(UserError, match=r"muon_kimi steps whole matrices.*trainer.strategy single.*use ddp, zero0, or"):
        train(config_of(corpus, tmp_path), progress=False)
    assert not (tmp_path / "run").exists()


def test_compiling_without_a_compiler_is_refused_before_the_first_step(monkeypatch, corpus, tmp_path):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"trainer.compile is on, but needs a C\+\+ compiler.*set trainer.compile off"):
        train(config_of(corpus, tmp_path, compile="on"), progress=False)


def test_it_is_printed_three_ways(capsys):
    assert main(["support", "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert entries[0].keys() >= {"rule", "strategy", "precision", "refusal", "other_processes", "compile"}
    assert main(["support"]) == 0
    assert "zero1 zero2 zero3" in capsys.readouterr().out
    assert main(["support", "--markdown"]) == 0
    assert capsys.readouterr().out.startswith("| optimizer | strategies |")
