"""Two and four processes that train for all tests of this folder, and short runs for them."""

from functools import partial

import pytest

from tests.conftest import tiny_config
from tests.distributed.launch import Together


@pytest.fixture(scope="package")
def two(tmp_path_factory):
    """Two processes."""
    with Together(2, tmp_path_factory.mktemp("two")) as processes:
        yield processes


@pytest.fixture(scope="package")
def four(tmp_path_factory):
    """Four processes."""
    with Together(4, tmp_path_factory.mktemp("four")) as processes:
        yield processes


STRATEGIES = ["ddp", "zero0", "zero1", "zero2", "zero3", "fsdp"]
STEPS, HALF = 7, 3
BASE = {
    "data.micro_batch": 2,
    "schedule.warmup_steps": 2,
    "schedule.min_lr": 2**-7,  # soon constant
    "trainer.max_steps": STEPS,
    "trainer.checkpoint_every": HALF,  # after 3, 6 and 7 steps
    "trainer.keep_checkpoints": 9,
    "trainer.validate_every": 0,
    "data.val_tokens": 64,  # more would take longer than the training
    "trainer.feature_norms_every": 0,
    "trainer.gradient_clip": 0.95,  # about the median of the norms: some steps are clipped
}


@pytest.fixture(scope="package")
def config_of(corpus, tmp_path_factory):
    """config_of(name, strategy, processes, **{"section.key": value})."""
    make = partial(tiny_config, corpus, tmp_path_factory.mktemp("together"))

    def config(name, strategy, processes, **changes):
        run = {"run.name": name, "trainer.strategy": strategy, "trainer.devices": processes}
        return make(**BASE | run | changes)

    return config
