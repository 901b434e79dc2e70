"""data.micro_batch auto: the largest that divides a process's share of the batch, and fits."""

from itertools import product

import pytest

from mup_lightning.errors import UserError
from mup_lightning.plan.memory import GPU_SHARE
from mup_lightning.plan.plan import plan
from mup_lightning.training.train import settle
from tests.plan.test_memory import configure


@pytest.mark.parametrize(
    ("size", "batch", "processes", "expected"),
    [
        *[("nano", 16, 1, 16), ("nano", 16, 2, 8), ("nano", 64, 4, 16), ("nano", 12, 1, 12)],
        *[("base", 240, 1, 8), ("base", 8, 1, 8), ("base", 16, 2, 8), ("base", 30, 2, 5), ("base", 7, 1, 7)],
        *[("small", 240, 1, 8), ("large", 240, 1, 4), ("xl", 256, 1, 2)],
    ],
)
def test_on_a_cpu_it_is_what_these_sizes_have_always_had(size, batch, processes, expected):
    strategy = "zero1" if processes > 1 else "single"
    config = configure(f"size/{size}", data__batch_size=batch, trainer__strategy=strategy, trainer__devices=processes)
    config.trainer.accelerator = "cpu"
    assert settle(config) == batch // (processes * expected)
    assert config.data.micro_batch == expected


def test_on_a_gpu_it_is_the_largest_that_fits():
    totals = {}
    for sequences in (1, 2, 3, 5, 6, 10, 15, 30):
        found = plan(configure("size/large", data__micro_batch=sequences), (8,)).memory
        totals |= {(sequences, m.zero): m.total for m in found}
    for strategy, memory in product(("ddp", "zero1", "zero3"), (24e9, 40e9)):
        config = configure("size/large", trainer__strategy=strategy)
        chosen, stage = plan(config, (8,), memory=memory).micro_batch[8], config.trainer.zero_stage
        fitting = [n for (n, zero), total in totals.items() if zero == stage and total <= GPU_SHARE * memory]
        assert 1 < chosen == max(fitting) < 30


def test_processes_that_cannot_divide_the_batch_are_refused_with_what_works():
    config = configure("size/nano", trainer__strategy="ddp", trainer__devices=3, trainer__accelerator="cpu")
    with pytest.raises(UserError, match=r"data.batch_size = 16 cannot be divided.* Set data.batch_size to 15 or 18.$"):
        settle(config)
    config.data.micro_batch, config.trainer.devices = 16, 2
    with pytest.raises(UserError, match=r"Set data.batch_size to 32, or data.micro_batch to auto.$"):
        settle(config)


def test_the_plan_shows_it_for_every_number_of_processes():
    found = plan(configure("size/xl", trainer__strategy="zero1"), (8, 32, 512))
    assert found.micro_batch == {8: 16, 32: 8, 512: None}
    assert found.accumulation == {8: 2, 32: 1, 512: None}
