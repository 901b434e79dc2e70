"""The order of samples, against plain sorting; validation windows, each once over all ranks."""

import numpy as np
import pytest
import torch

from mup_lightning.data.sampler import _epochs, accumulation_steps, epoch_permutation, sample_id, validation_batches
from mup_lightning.data.shards import TokenStore
from mup_lightning.errors import UserError

from .conftest import expected_tokens


def brute_force_run(seed, n, length):
    """The sample ids of counters 0 .. length - 1, epoch after epoch, by plain sorting."""
    run = []
    epoch = 0
    while len(run) < length:
        keys = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(n).tolist()
        run += sorted(range(n), key=lambda i, keys=keys: (keys[i], i))
        epoch += 1
    return run[:length]


def test_the_order_is_that_of_plain_sorting_and_never_changes():
    for n in (1, 2, 7, 100):
        assert sample_id(np.arange(3 * n + 5), 11, n).tolist() == brute_force_run(11, n, 3 * n + 5)
    assert sample_id(np.arange(12), 1234, 8).tolist() == [1, 6, 2, 0, 3, 5, 7, 4, 3, 6, 7, 0]
    counters = np.array([[250, 3], [99, 100]])  # of any shape and order
    run = brute_force_run(5, 100, 251)
    assert sample_id(counters, 5, 100).tolist() == [[run[c] for c in row] for row in counters.tolist()]
    assert _epochs(5, 100).cache_info().currsize == 2  # only two epochs are kept, for reading only
    with pytest.raises(ValueError, match="read-only"):
        epoch_permutation(5, 0, 100)[0] = 1


def test_accumulation():
    assert accumulation_steps(240, 8, 1) == 30
    assert accumulation_steps(240, 10, 8) == 3
    with pytest.raises(UserError, match=r"data\.batch_size = 100 .* 8 x 3 = 24\. Set data\.batch_size to 96 or 120"):
        accumulation_steps(100, 8, 3)
    with pytest.raises(UserError, match=r"batch_size to 24\.$"):
        accumulation_steps(10, 8, 3)


@pytest.fixture
def store(make_corpus):
    return TokenStore.open(make_corpus(val=173, shard_tokens=100), "val")  # 17 windows of 10, 2 tokens left over


@pytest.mark.parametrize(("world_size", "batch"), [(1, 4), (1, 50), (4, 2), (20, 1)])
def test_each_validation_window_once_over_all_ranks(store, world_size, batch):
    per_rank = [list(validation_batches(store, 10, batch, rank, world_size)) for rank in range(world_size)]
    assert len({len(batches) for batches in per_rank}) == 1  # a sharded model waits for all ranks
    assert world_size > 1 or all(len(b) for b in per_rank[0])
    rows = {}
    for rank, batches in enumerate(per_rank):
        windows = torch.cat(batches)
        assert windows.dtype == torch.int64
        assert all(b.shape[1] == 11 and len(b) <= batch for b in batches)
        rows |= {rank + world_size * i: row for i, row in enumerate(windows.tolist())}
    tokens = expected_tokens(173).tolist()
    assert rows == {i: tokens[10 * i : 10 * i + 11] for i in range(17)}


def test_how_many_validation_windows_there_are(store):
    def count(val_tokens):
        return sum(len(b) for b in validation_batches(store, 10, 4, val_tokens=val_tokens))

    assert [count(n) for n in (10, 19, 20, 10_000, None)] == [1, 1, 2, 17, 17]
    with pytest.raises(UserError, match=r"data\.val_tokens is 9; expected a multiple of the context 10"):
        count(9)
    assert len(list(validation_batches(store, 172, 1))) == 1
    with pytest.raises(UserError, match=r"val split of .* has 173 tokens, but a context of 173 needs at least 174"):
        list(validation_batches(store, 173, 1))
