"""A run continues to the bit under every strategy, and under another strategy or number of processes to rounding."""

from pathlib import Path

import pytest
import torch

from mup_lightning.training.export import export
from mup_lightning.training.tensors import Shards
from mup_lightning.training.train import train
from tests import families
from tests.distributed.conftest import HALF, STRATEGIES
from tests.training.reference import assert_same_training, weights_of

pytestmark = pytest.mark.timeout(600)  # the first test of a file pays for all of its runs
RULES = {
    "muon_kimi": {},  # AdamW's state is in it, too
    "sophia": {"rules.sophia.hessian_every": 2},
    "soap": {"rules.soap.precondition_every": 2},
    "adamw": families.model(families.LLAMA),
    "muon_kimi-llama": families.model(families.LLAMA | {"qk_norm": True, "qk_gain": True}),
    "muon_kimi-mixtral": families.model(families.MIXTRAL),
}
"""A rule, and what is trained besides the defaults."""
BIT = [("muon_kimi", strategy) for strategy in STRATEGIES]
BIT += [("sophia", "ddp"), ("sophia", "zero3"), ("soap", "ddp"), ("soap", "zero2")]
BIT += [("adamw", "zero1"), ("adamw", "fsdp")]
BIT += [("muon_kimi-llama", strategy) for strategy in ("ddp", "zero2", "zero3")]
BIT += [("muon_kimi-mixtral", strategy) for strategy in ("ddp", "zero3")]
# From each kind of checkpoint (whole parameters, flat groups, every parameter cut by elements or by rows) to other
# strategies and numbers of processes. Without dropout, whose draws belong to processes, all compute the same.
MOVES = [
    *[("ddp", "zero3", 2), ("ddp", "zero1", 4), ("ddp", "single", 1)],
    *[("zero2", "ddp", 2), ("zero2", "zero3", 4), ("zero2", "single", 1)],
    *[("zero3", "zero1", 2), ("zero3", "ddp", 4), ("zero3", "single", 1)],
    *[("zero3", "fsdp", 4), ("fsdp", "zero3", 2), ("fsdp", "single", 1)],
]


@pytest.fixture(scope="module")
def runs(config_of, two, four):
    """Name of a run -> its last checkpoint."""

    def resumed(name, strategy, processes, source, **changes):
        half = source.run.root + f"/{source.run.name}/checkpoints/step_{HALF:08d}"
        return config_of(name, strategy, processes, **{"run.resume": half, **changes})

    straight, again = [], []
    for rule, strategy in BIT:
        changes = {"recipe.optimizer": rule.split("-")[0], "model.dropout": 0.1} | RULES[rule]
        straight.append(config_of(f"{rule}-{strategy}", strategy, 2, **changes))
        again.append(resumed(f"{rule}-{strategy}-again", strategy, 2, straight[-1], **changes))
    # A trunk that holds its peak, and a run that decays, whole and from the trunk on.
    trunk = config_of("trunk", "ddp", 2, **{"schedule.kind": "constant", "trainer.max_steps": HALF})
    decay = {"schedule.kind": "wsd", "schedule.floor": 0}
    straight += [config_of("branch-ddp", "ddp", 2, **decay), trunk]
    again.append(resumed("branch-ddp-again", "ddp", 2, trunk, **decay))
    plain = {source: config_of(f"plain-{source}", source, 2) for source in ("ddp", "zero2", "zero3", "fsdp")}
    moved = {1: [], 2: [], 4: []}
    for source, strategy, processes in MOVES:
        name, auto = f"{source}-{strategy}-{processes}", {"data.micro_batch": "auto"}
        moved[processes].append(resumed(name, strategy, processes, plain[source], **auto))
    done = two.train([*straight, *again, *plain.values(), *moved[2]])
    done |= four.train(moved[4])
    return done | {config.run.name: train(config, progress=False).checkpoint for config in moved[1]}


@pytest.mark.parametrize(("rule", "strategy"), [*BIT, ("branch", "ddp")])
def test_a_continued_run_is_the_same_to_the_bit(runs, rule, strategy):
    straight, again = Shards(runs[f"{rule}-{strategy}"]), Shards(runs[f"{rule}-{strategy}-again"])
    assert straight.quantities == again.quantities
    for name, quantities in straight.quantities.items():
        assert len(quantities) > 1, name
        for quantity in quantities:
            assert torch.equal(straight.read(quantity, name), again.read(quantity, name)), (name, quantity)


@pytest.mark.parametrize(("source", "strategy", "processes"), MOVES)
def test_another_strategy_or_number_of_processes_continues_it(runs, source, strategy, processes):
    found, wanted = runs[f"{source}-{strategy}-{processes}"], runs[f"plain-{source}"]
    assert_same_training(weights_of(found), weights_of(wanted), bound=5e-6)


@pytest.mark.parametrize("name", [*(f"muon_kimi-{strategy}" for strategy in STRATEGIES), "adamw-zero1"])
def test_it_is_exported_whole(runs, name, tmp_path):
    """GPT-2 blocks, and Llama's (adamw); transformers computes what the checkpoint does, and so what its run did."""
    assert "the same in transformers" in export(Path(runs[name]), tmp_path / "hf", verify=True)
