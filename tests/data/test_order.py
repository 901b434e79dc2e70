import numpy as np
import pytest

from mup_lightning.data.sampler import accumulation_steps, batch_counters, epoch_permutation, sample_id, samples_in
from mup_lightning.errors import UserError


def brute_force_run(seed: int, n: int, length: int) -> list[int]:
    """The sample ids of counters 0 .. length - 1, epoch after epoch, by plain sorting."""
    run: list[int] = []
    epoch = 0
    while len(run) < length:
        keys = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(n).tolist()
        run += sorted(range(n), key=lambda i, keys=keys: (keys[i], i))
        epoch += 1
    return run[:length]


def test_samples_in():
    assert [samples_in(t, 4) for t in (0, 1, 4, 5, 8, 9)] == [0, 0, 0, 1, 1, 2]


@pytest.mark.parametrize("n", [1, 2, 7, 100])
def test_against_brute_force(n):
    length = 3 * n + 5
    assert sample_id(np.arange(length), 11, n).tolist() == brute_force_run(11, n, length)


def test_each_epoch_is_a_bijection_and_another_order():
    ids = sample_id(np.arange(300), 0, 100).reshape(3, 100)
    assert all(sorted(epoch) == list(range(100)) for epoch in ids.tolist())
    assert len({tuple(epoch) for epoch in ids.tolist()}) == 3
    assert ids[0].tolist() != list(range(100))
    assert sample_id(np.arange(100), 1, 100).tolist() != ids[0].tolist()


def test_the_order_never_changes_between_versions():
    assert sample_id(np.arange(12), 1234, 8).tolist() == [1, 6, 2, 0, 3, 5, 7, 4, 3, 6, 7, 0]


def test_counters_of_any_shape_and_order():
    counters = np.array([[250, 3], [99, 100]])
    run = brute_force_run(5, 100, 251)
    assert sample_id(counters, 5, 100).tolist() == [[run[c] for c in row] for row in counters.tolist()]
    assert sample_id(np.array([], dtype=np.int64), 5, 100).tolist() == []
    with pytest.raises(ValueError, match="counters >= 0"):
        sample_id(np.array([-1]), 5, 100)
    with pytest.raises(ValueError, match="n_samples >= 1"):
        sample_id(np.array([0]), 5, 0)


def test_only_two_epochs_are_kept():
    sample_id(np.arange(50), 0, 10)
    assert epoch_permutation.cache_info().currsize == 2
    with pytest.raises(ValueError, match="read-only"):
        epoch_permutation(0, 0, 10)[0] = 1


LAYOUTS = [(1, 24), (1, 6), (2, 12), (2, 2), (3, 4), (4, 1), (8, 3), (24, 1)]  # world size, micro-batch


@pytest.mark.parametrize(("world_size", "micro_batch"), LAYOUTS)
def test_a_global_batch_is_covered_exactly_and_in_order(world_size, micro_batch):
    shape = {"batch_size": 24, "micro_batch": micro_batch, "world_size": world_size}
    accumulation = accumulation_steps(**shape)
    for step in (0, 1, 5):
        parts = [
            batch_counters(step, micro_step, rank, **shape)
            for micro_step in range(accumulation)
            for rank in range(world_size)
        ]
        assert all(part.shape == (micro_batch,) and part.dtype == np.int64 for part in parts)
        assert np.concatenate(parts).tolist() == list(range(24 * step, 24 * step + 24))


def test_positions_outside_the_run_are_refused():
    shape = {"batch_size": 8, "micro_batch": 2, "world_size": 2}
    for step, micro_step, rank in ((-1, 0, 0), (0, 2, 0), (0, 0, 2), (0, 0, -1)):
        with pytest.raises(ValueError, match="no micro-step"):
            batch_counters(step, micro_step, rank, **shape)


def test_accumulation():
    assert accumulation_steps(240, 8, 1) == 30
    assert accumulation_steps(240, 10, 8) == 3
    with pytest.raises(UserError, match=r"data\.batch_size = 100 .* 8 x 3 = 24\. Set data\.batch_size to 96 or 120"):
        accumulation_steps(100, 8, 3)
    with pytest.raises(UserError, match="batch_size to 24, or"):
        accumulation_steps(10, 8, 3)
