"""Two and four real processes train what one does: every rule, every strategy, both precisions.

Gradients are accumulated over micro-batches, clipping is active in most steps, and every role has its own learning
rate. How a rule is driven depends on what it is (elementwise, in need of an estimate of the Hessian, on whole matrices)
and on the strategy: one rule of each kind is trained under all strategies, the others under a stage of ZeRO, and under
ddp if they work on whole matrices.
"""

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
MIXTRAL = families.model(families.MIXTRAL)
EXPERTS = [("adamw", "zero3"), ("sophia", "ddp"), *(("muon_kimi", s) for s in ("ddp", "zero2", "zero3", "fsdp"))]
# Sophia runs the compiled blocks a second time, for its estimate of the Hessian.
ONE_BLOCK, BFLOAT16 = {"model.depth": 1}, {"trainer.precision": "bf16"}
COMPILED = [("sophia", "ddp"), ("adamw", "zero0"), ("muon_kimi", "zero1"), ("adamw", "zero2"), ("muon_kimi", "zero3")]
COMPILED += [("muon_kimi", "fsdp")]


@pytest.fixture(scope="module")
def settings(config_of):
    """settings(rule, strategy, processes, kind, **changes); a run is named kind-rule-strategy."""

    def make(rule, strategy, processes, kind, **changes):
        name = f"{kind}-{rule}-{strategy}"
        return config_of(name, strategy, processes, **{"recipe.optimizer": rule, **SETTINGS.get(rule, {}), **changes})

    return make


@pytest.fixture(scope="module")
def by_two(settings, two):
    """Name of a run of two processes -> its last checkpoint, or the error."""
    special = [(case, "llama", LLAMA) for case in BOTH]
    special += [(case, "mixtral", MIXTRAL) for case in EXPERTS]
    special += [(case, "bf16", BFLOAT16) for case in BOTH]
    special += [(case, "compiled", ONE_BLOCK | {"trainer.compile": "on"}) for case in COMPILED]
    special += [(("adamw", strategy), "exploding", {"recipe.lr": 1e30}) for strategy in STRATEGIES]
    return two.train(
        [settings(*case, 2, "fp32") for case in AT_TWO]
        + [settings(*case, 2, kind, **changes) for case, kind, changes in special]
    )


@pytest.fixture(scope="module")
def by_four(settings, four):
    return four.train([settings(*case, 4, "four", **{"data.micro_batch": 1}) for case in AT_FOUR])


@pytest.fixture(scope="module")
def alone(settings):
    """The checkpoint of one process; each is trained once."""
    done = {}

    def checkpoint(rule, kind="fp32", **changes):
        if (rule, kind) not in done:
            config = settings(rule, "single", 1, kind, **changes)
            done[rule, kind] = train(config, progress=False).checkpoint
        return done[rule, kind]

    return checkpoint


@pytest.mark.parametrize(("rule", "strategy"), AT_TWO)
def test_two_processes_train_what_one_does(by_two, alone, rule, strategy):
    """The same weights; and every state is saved once and whole."""
    found, wanted = by_two[f"fp32-{rule}-{strategy}"], alone(rule)
    assert_same_training(weights_of(found), weights_of(wanted), bound=5e-6)
    for quantity in ("exp_avg", "momentum", "hessian", "step"):
        theirs, ours = quantities_of(found, quantity), quantities_of(wanted, quantity)
        assert theirs.keys() == ours.keys()
        for name, value in ours.items():
            assert theirs[name].numel() == value.numel()
            assert (theirs[name].flatten().double() - value.flatten().double()).abs().max() < 1e-4, (quantity, name)


KINDS = {
    "four": (AT_FOUR, "fp32", {}),
    # Matrices of many shapes, stacked in pairs or by heads, and gains of one head.
    "llama": (BOTH, "llama", LLAMA),
    # Tokens go to the same experts, whose loads are balanced alike, however many sequences a process has.
    "mixtral": (EXPERTS, "mixtral", MIXTRAL),
    "compiled": (COMPILED, "plain", ONE_BLOCK),
}
"""Kind of a run -> its cases, and the kind and changes of the run of one process that it is compared with."""


@pytest.mark.parametrize(("kind", "rule", "strategy"), [(kind, *case) for kind in KINDS for case in KINDS[kind][0]])
def test_every_kind_of_model_is_trained_as_by_one_process(request, alone, kind, rule, strategy):
    done = request.getfixturevalue("by_four" if kind == "four" else "by_two")
    _, other, changes = KINDS[kind]
    wanted = weights_of(alone(rule, other, **changes))
    assert_same_training(weights_of(done[f"{kind}-{rule}-{strategy}"]), wanted, bound=5e-6)


@pytest.mark.parametrize(("rule", "strategy"), BOTH)
def test_bf16_is_the_same_mathematics_under_every_strategy(by_two, alone, rule, strategy):
    """Weights are float32 and products bf16, the same ones: what differs is the order in which gradients are added.

    Where that tips a product over to the next bf16 number, it costs what rounding to bf16 costs anyway. Both runs lie
    as far from float32 as that takes them; so over all weights they lie at most twice as far from each other.
    """
    folder = by_two[f"bf16-{rule}-{strategy}"]
    found, wanted, exact = (weights_of(path) for path in (folder, alone(rule, "bf16", **BFLOAT16), alone(rule)))
    assert all(weight.dtype == torch.float32 for weight in found.values())
    # DeepSpeed's own bf16 takes one step too many at stage 0.
    assert {int(step) for step in quantities_of(folder, "step").values()} == {STEPS}

    def distance(first, second):
        return (
            sum((first[name].view_as(w) - w).square().sum() for name, w in second.items() if "bias" not in name) ** 0.5
        )

    assert distance(wanted, exact) > 0
    assert distance(found, wanted) < 2 * distance(wanted, exact)


def test_a_compiled_block_computes_the_same_in_machine_code(alone):
    found = weights_of(alone("adamw", "machine", **ONE_BLOCK, **{"trainer.compile": "on"}))
    assert_same_training(found, weights_of(alone("adamw", "plain", **ONE_BLOCK)), bound=2e-5)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_gradients_that_are_not_finite_end_the_run(by_two, strategy):
    """DeepSpeed alone would skip the step, and every one after it, without a word."""
    error = by_two[f"exploding-adamw-{strategy}"]
    assert "Stopped before the optimizer step: no weight has changed" in error
    assert "in step 2" in error or "in step 3" in error
