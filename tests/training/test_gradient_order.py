"""Gradients come in any order, and are reduced in one."""

import random

import pytest
import torch

from mup_lightning.training.deepspeed import InOrder


class Wrapped:
    """Of DeepSpeed's optimizer, what `InOrder` touches: it notes what it is told."""

    def __init__(self):
        self.told = []

    def reduce_ready_partitions_and_remove_grads(self, parameter, group):
        self.told.append((parameter, group))

    def overlapping_partition_gradients_reduce_epilogue(self):
        self.told.append("end")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("missing", [(), (0,), (2, 5)])
def test_every_backward_pass_has_the_same_order(seed, missing):
    parameters = [torch.zeros(1) for _ in range(8)]
    wrapped = Wrapped()
    InOrder(wrapped, parameters)
    wanted = [place for place in reversed(range(8)) if place not in missing]
    shuffle = random.Random(seed).shuffle
    for _ in range(3):
        wrapped.told.clear()
        order = list(wanted)
        shuffle(order)
        for place in order:
            wrapped.reduce_ready_partitions_and_remove_grads(parameters[place], f"group {place}")
        wrapped.overlapping_partition_gradients_reduce_epilogue()
        assert wrapped.told[-1] == "end"
        assert [group for _, group in wrapped.told[:-1]] == [f"group {place}" for place in wanted]
        assert all(parameter is parameters[int(group.split()[1])] for parameter, group in wrapped.told[:-1])


def test_nobody_waits_for_what_comes_in_order():
    parameters = [torch.zeros(1) for _ in range(3)]
    wrapped = Wrapped()
    InOrder(wrapped, parameters)
    for number, parameter in enumerate(reversed(parameters), start=1):
        wrapped.reduce_ready_partitions_and_remove_grads(parameter, 0)
        assert len(wrapped.told) == number
