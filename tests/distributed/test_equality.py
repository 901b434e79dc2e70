"""Two and four real processes train what one does: every rule, every strategy, both precisions.

Gradients are accumulated over micro-batches, clipping is active in most steps, and every role has its own learning
rate. How a rule is driven depends on what it is (elementwise, in need of an estimate of the Hessian, on whole matrices)
and on the strategy: one rule of each kind is trained under all strategies, the others under a stage of ZeRO, and under
ddp if they work on whole matrices.
"""

from functools import cache

import pytest
import torch

from mup_lightning.optim.registry import RULES
from mup_lightning.training.train import train
from tests import families
from tests.distributed.conftest import STEPS, STRATEGIES
from tests.training.reference import assert_same_training, quantities_of, weights_of

pytestmark = pytest.mark.timeout(600)  # the first test of a file pays for all of its runs
WITNESSES = ["adamw", "sophia", "muon_kimi"]
OTHERS = [rule for rule in RULES if rule not in WITNESSES]

# Where rounding is divided by rounding, two exact implementations part ways: in entries of Sophia's direction whose
# gradient is all but zero, in Shampoo's null spaces. These stabilisers keep such entries small, and so the comparison
# sharp; at this rho, h decides the size of most of Sophia's entries. SOAP has no such setting: the eigenbasis itself is
# arbitrary wherever the first gradient is of low rank, and rounding chooses it. So SOAP gets gradients without rounding
# differences: two micro-batches, whose sum does not depend on who adds them, and no clipping.
SETTINGS = {
    "sophia": {"rules.sophia.eps": 1e-4, "rules.sophia.rho": 10.0, "rules.sophia.hessian_every": 3},
    "soap": {"data.micro_batch": 4, "trainer.gradient_clip": 0.0, "rules.soap.precondition_every": 3},
    "shampoo": {"rules.shampoo.eps": 1e-6},
}
AT_TWO = [(rule, strategy) for rule in WITNESSES for strategy in STRATEGIES]
AT_TWO += [(rule, s) for n, rule in enumerate(OTHERS) for s in ("ddp", f"zero{1 + n % 2}")]
BOTH = [(rule, strategy) for rule in ("adamw", "muon_kimi") for strategy in STRATEGIES]
AT_FOUR = [("sophia", "zero1"), *(("muon_kimi", strategy) for strategy in ("ddp", "zero1", "zero3", "fsdp"))]
LLAMA = families.model(families.LLAMA | {"qk_norm": True, "qk_gain": True}) | {"rules.muon.per_head": True}
EXPERTS = [("adamw", "zero3"), ("sophia", "ddp"), *(("muon_kimi", s) for s in ("ddp", "zero2", "zero3", "fsdp"))]
# Sophia runs the compiled blocks a second time, for its estimate of the Hessian.
COMPILED = [("sophia", "ddp"), ("adamw", "zero0"), ("muon_kimi", "zero1"), ("adamw", "zero2"), ("muon_kimi", "zero3")]
COMPILED += [("muon_kimi", "fsdp")]
KINDS = {
    "fp32": (AT_TWO, {}),
    # Matrices of many shapes, stacked in pairs or by heads, and gains of one head.
    "llama": (BOTH, LLAMA),
    # Tokens go to the same experts, whose loads are balanced alike, however many sequences a process has.
    "mixtral": (EXPERTS, families.model(families.MIXTRAL)),
    "compiled": (COMPILED, {"model.depth": 1, "trainer.compile": "on"}),
    "bf16": (BOTH, {"trainer.precision": "bf16"}),
    "exploding": ([("adamw", strategy) for strategy in STRATEGIES], {"recipe.lr": 1e30}),
    "four": (AT_FOUR, {"data.micro_batch": 1}),
}
"""Kind of a run -> its rules and strategies, and what is changed in it; all but the last are of two processes."""
SAME = [(kind, *case) for kind in ("fp32", "llama", "mixtral", "compiled", "four") for case in KINDS[kind][0]]


@pytest.fixture(scope="module")
def settings(config_of):
    """settings(kind, rule, strategy, processes, **changes); a run is named kind-rule-strategy."""

    def make(kind, rule, strategy, processes, **changes):
        own = {"recipe.optimizer": rule, "trainer.checkpoint_every": 0} | SETTINGS.get(rule, {}) | KINDS[kind][1]
        return config_of(f"{kind}-{rule}-{strategy}", strategy, processes, **own | changes)

    return make


@pytest.fixture(scope="module")
def by_two(settings, two):
    """Name of a run of two processes -> its last checkpoint, or the error."""
    return two.train([settings(kind, *case, 2) for kind in KINDS if kind != "four" for case in KINDS[kind][0]])


@pytest.fixture(scope="module")
def by_four(settings, four):
    return four.train([settings("four", *case, 4) for case in AT_FOUR])


@pytest.fixture(scope="module")
def alone(settings):
    """The checkpoint of one process, not compiled; each is trained once."""

    @cache
    def checkpoint(kind, rule):
        config = settings(kind, rule, "single", 1, **{"trainer.compile": "off"})
        return train(config, progress=False).checkpoint

    return checkpoint


@pytest.mark.parametrize(("kind", "rule", "strategy"), SAME)
def test_several_processes_train_what_one_does(request, alone, kind, rule, strategy):
    """The same weights; and every state is saved once and whole."""
    done = request.getfixturevalue("by_four" if kind == "four" else "by_two")
    found, wanted = done[f"{kind}-{rule}-{strategy}"], alone("fp32" if kind == "four" else kind, rule)
    assert_same_training(weights_of(found), weights_of(wanted), bound=5e-6)
    for quantity in ("exp_avg", "momentum", "hessian", "step") if kind == "fp32" else ():
        theirs, ours = quantities_of(found, quantity), quantities_of(wanted, quantity)
        assert theirs.keys() == ours.keys()
        for name, value in ours.items():
            assert theirs[name].numel() == value.numel()
            assert (theirs[name].flatten().double() - value.flatten().double()).abs().max() < 1e-4, (quantity, name)


@pytest.mark.parametrize(("rule", "strategy"), BOTH)
def test_bf16_is_the_same_mathematics_under_every_strategy(by_two, alone, rule, strategy):
    """Weights are float32 and products bf16, the same ones: what differs is the order in which gradients are added.

    Where that tips a product over to the next bf16 number, it costs what rounding to bf16 costs anyway. Both runs lie
    as far from float32 as that takes them; so over all weights they lie at most twice as far from each other.
    """
    folder = by_two[f"bf16-{rule}-{strategy}"]
    found, wanted, exact = (weights_of(path) for path in (folder, alone("bf16", rule), alone("fp32", rule)))
    assert all(weight.dtype == torch.float32 for weight in found.values())
    # DeepSpeed's own bf16 takes one step too many at stage 0.
    assert {int(step) for step in quantities_of(folder, "step").values()} == {STEPS}

    def distance(first, second):
        return (
            sum((first[name].view_as(w) - w).square().sum() for name, w in second.items() if "bias" not in name) ** 0.5
        )

    assert distance(wanted, exact) > 0
    assert distance(found, wanted) < 2 * distance(wanted, exact)


def test_a_compiled_block_computes_the_same_in_machine_code(settings, alone):
    config = settings("compiled", "adamw", "single", 1, **{"run.name": "machine"})
    found = weights_of(train(config, progress=False).checkpoint)
    assert_same_training(found, weights_of(alone("compiled", "adamw")), bound=2e-5)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_gradients_that_are_not_finite_end_the_run(by_two, strategy):
    """DeepSpeed alone would skip the step, and every one after it, without a word."""
    error = by_two[f"exploding-adamw-{strategy}"]
    assert "Stopped before the optimizer step: no weight has changed" in error
    assert "in step 2" in error or "in step 3" in error
