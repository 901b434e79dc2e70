"""Gradients come in any order, and are reduced in one."""

import random
from types import SimpleNamespace

import pytest
import torch

from mup_lightning.training.deepspeed import reduce_in_order


@pytest.mark.parametrize("order", ["any", "backward"])
@pytest.mark.parametrize("missing", [(), (0,), (2, 5)])
def test_every_backward_pass_has_the_same_order(order, missing):
    told = []
    wrapped = SimpleNamespace(
        reduce_ready_partitions_and_remove_grads=lambda parameter, group: told.append((parameter, group)),
        overlapping_partition_gradients_reduce_epilogue=lambda: told.append("end"),
    )
    parameters = [torch.zeros(1) for _ in range(8)]
    reduce_in_order(wrapped, parameters)
    wanted = [place for place in reversed(range(8)) if place not in missing]
    for seed in range(3):
        told.clear()
        arriving = random.Random(seed).sample(wanted, len(wanted)) if order == "any" else wanted
        for number, place in enumerate(arriving, start=1):
            wrapped.reduce_ready_partitions_and_remove_grads(parameters[place], place)
            assert order == "any" or missing or len(told) == number  # nobody waits for what comes in order
        wrapped.overlapping_partition_gradients_reduce_epilogue()
        assert [group for _, group in told[:-1]] == wanted
        assert told[-1] == "end"
        assert all(parameter is parameters[place] for parameter, place in told[:-1])
