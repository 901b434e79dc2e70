import pytest
import torch

from mup_lightning.data.shards_old import TokenStore
from mup_lightning.data.validation import validation_batches
from mup_lightning.errors import UserError

from .conftest import expected_tokens


@pytest.fixture
def store(make_corpus):
    return TokenStore.open(make_corpus(val=173, shard_tokens=100), "val")  # 17 windows of 10, 2 tokens left over


@pytest.mark.parametrize(("world_size", "batch"), [(1, 1), (1, 4), (1, 17), (1, 50), (2, 3), (4, 2), (20, 1)])
def test_each_window_once_over_all_ranks(store, world_size, batch):
    per_rank = [list(validation_batches(store, 10, batch, rank, world_size)) for rank in range(world_size)]
    assert len({len(batches) for batches in per_rank}) == 1  # a sharded model waits for all ranks
    rows = {}
    for rank, batches in enumerate(per_rank):
        windows = torch.cat(batches)
        assert windows.dtype == torch.int64
        assert all(b.shape[1] == 11 and len(b) <= batch for b in batches)
        rows |= {rank + world_size * i: row for i, row in enumerate(windows.tolist())}
    tokens = expected_tokens(173).tolist()
    assert rows == {i: tokens[10 * i : 10 * i + 11] for i in range(17)}


def test_one_process_gets_no_empty_batch(store):
    assert [len(b) for b in validation_batches(store, 10, 4)] == [4, 4, 4, 4, 1]


def test_only_the_first_tokens(store):
    def count(val_tokens):
        return sum(len(b) for b in validation_batches(store, 10, 4, val_tokens=val_tokens))

    assert [count(n) for n in (10, 19, 20, 10_000, None)] == [1, 1, 2, 17, 17]
    with pytest.raises(UserError, match=r"data\.val_tokens = 9 is less than one window of 10 .*multiple of 10"):
        count(9)


def test_a_context_longer_than_the_split(store):
    assert len(list(validation_batches(store, 172, 1))) == 1
    with pytest.raises(UserError, match=r"val split of .* has 173 tokens, but a context of 173 needs at least 174"):
        list(validation_batches(store, 173, 1))
