"""A run continues to the bit under every strategy, and under another strategy or number of processes to rounding."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mup_lightning.config.schema import Config
from mup_lightning.training.tensors import Shards
from tests.distributed.launch import train_together
from tests.training.reference import assert_same_training, weights_of

pytestmark = pytest.mark.timeout(1500)  # the launches, which the first test of a file pays for, on a busy machine
STRATEGIES = ["ddp", "zero0", "zero1", "zero2", "zero3"]
RULES = ["adamw", "muon_kimi", "sophia", "soap"]
STEPS, HALF = 8, 4


@pytest.fixture(scope="module")
def config_of(corpus, tmp_path_factory):
    """config_of(rule, strategy, processes, name)."""
    root = tmp_path_factory.mktemp("resumed")

    def make(rule, strategy, processes, name):
        return Config.from_plain(
            {
                "model": {"width": 32, "depth": 2, "heads": 2, "context": 16, "dropout": 0.1},
                "recipe": {"base_width": 16, "base_depth": 1, "weight_decay": 0.1, "eps": 1e-8, "optimizer": rule},
                "rules": {"sophia": {"hessian_every": 3}, "soap": {"precondition_every": 3}},
                "data": {"path": str(corpus), "tokenizer": "bytes", "batch_size": 8, "micro_batch": 2},
                "trainer": {
                    "max_steps": STEPS,
                    "checkpoint_every": HALF,
                    "validate_every": 0,
                    "feature_norms_every": 0,
                    "keep_checkpoints": 9,
                    "accelerator": "cpu",
                    "strategy": strategy,
                    "devices": processes,
                },
                "run": {"root": str(root), "name": name},
            }
        )

    return make


def continued(config, checkpoint, name):
    return replace(config, run=replace(config.run, name=name, resume=str(checkpoint)))


def half_of(config):
    return Path(config.run.root) / config.run.name / "checkpoints" / f"step_{HALF:08d}"


@pytest.fixture(scope="module")
def runs(config_of, tmp_path_factory):
    """label -> its checkpoint: straight runs, and runs continued from half-way by the same and by other strategies."""
    straight = {f"{rule}-{s}": config_of(rule, s, 2, f"{rule}-{s}") for rule in RULES for s in STRATEGIES}
    resumed = {f"{label}-again": continued(c, half_of(c), f"{label}-again") for label, c in straight.items()}
    # Without dropout, whose draws belong to processes, another strategy computes the same.
    moved = {}
    for rule in ("adamw", "muon_kimi"):
        base = config_of(rule, "zero2", 2, f"{rule}-plain")
        base.model.dropout = 0.0
        straight[f"{rule}-plain"] = base
        for strategy in ("ddp", "zero1", "zero3"):
            other = config_of(rule, strategy, 2, f"{rule}-to-{strategy}")
            other.model.dropout = 0.0
            moved[f"{rule}-to-{strategy}"] = continued(other, half_of(base), f"{rule}-to-{strategy}")
    by_two = train_together(straight | resumed | moved, 2, tmp_path_factory.mktemp("resume"))
    alone, three = {}, {}
    for rule in ("adamw", "muon_kimi"):
        base = straight[f"{rule}-plain"]
        for processes, strategy, into in ((1, "single", alone), (4, "zero1", three)):
            other = config_of(rule, strategy, processes, f"{rule}-to-{processes}")
            other.model.dropout = 0.0
            into[f"{rule}-to-{processes}"] = continued(other, half_of(base), f"{rule}-to-{processes}")
    by_one = train_together(alone, 1, tmp_path_factory.mktemp("alone"))
    by_four = train_together(three, 4, tmp_path_factory.mktemp("four"))
    return {label: Path(answer["checkpoint"]) for label, answer in (by_two | by_one | by_four).items()}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("rule", RULES)
def test_a_continued_run_is_the_same_to_the_bit(runs, rule, strategy):
    straight, again = Shards(runs[f"{rule}-{strategy}"]), Shards(runs[f"{rule}-{strategy}-again"])
    assert straight.quantities == again.quantities
    for name, quantities in straight.quantities.items():
        assert len(quantities) > 1, name
        for quantity in quantities:
            assert torch.equal(straight.read(quantity, name), again.read(quantity, name)), (name, quantity)


@pytest.mark.parametrize("target", ["to-ddp", "to-zero1", "to-zero3", "to-1", "to-4"])
@pytest.mark.parametrize("rule", ["adamw", "muon_kimi"])
def test_another_strategy_or_number_of_processes_continues_it(runs, rule, target):
    assert_same_training(weights_of(runs[f"{rule}-{target}"]), weights_of(runs[f"{rule}-plain"]), bound=5e-6)
