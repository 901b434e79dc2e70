"""Which samples a step reads: pure functions of a counter, so that resuming is exact and the world size may change.

A *sample* is a window of `context + 1` tokens; windows lie at stride `context`, so the target of a window's last
position is the first token of the next window and every token but the first is a target exactly once an epoch.
A *counter* numbers the samples of a whole run: step s owns the counters [s * batch_size, (s + 1) * batch_size),
whatever the number of processes. A counter's *sample id* is its place in the shuffled epoch it falls into.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import numpy as np

from mup_lightning.data.shards import TokenStore
from mup_lightning.errors import UserError

if TYPE_CHECKING:
    import torch


def samples_in(store: TokenStore, context: int, val_tokens: int | None = None) -> int:
    """How many windows of `context + 1` tokens at stride `context` a split, or its first `val_tokens` tokens, holds.

    Raises UserError where there is none.
    """
    samples = (len(store) - 1) // context
    if samples < 1:
        raise UserError(
            f"the {store.split} split of {store.path} has {len(store)} tokens, but a context of {context} needs at "
            f"least {context + 1}. Use a shorter context or a larger corpus (for val, a larger validation.fraction)."
        )
    if val_tokens is not None and val_tokens < context:
        raise UserError(f"data.val_tokens is {val_tokens}; expected a multiple of the context {context}, or null: all")
    return samples if val_tokens is None else min(samples, val_tokens // context)


def epoch_permutation(seed: int, epoch: int, n_samples: int) -> np.ndarray:
    """The order of an epoch: a permutation of 0 .. n_samples - 1 (int64, read-only).

    Sorting raw Philox output gives a uniform permutation (ties have probability n^2 / 2^65 and are broken by index)
    that, unlike `Generator.permutation`, NumPy guarantees never to change between its versions (NEP 19).
    """
    raw = np.random.Philox(np.random.SeedSequence((seed, epoch))).random_raw(n_samples)
    order = np.argsort(raw, kind="stable").astype(np.int64, copy=False)
    order.flags.writeable = False
    return order


@lru_cache(maxsize=64)  # corpora, of which a run may mix several
def _epochs(seed: int, n_samples: int) -> Callable[[int], np.ndarray]:
    # A batch touches at most two epochs of a corpus as long as it is smaller than one.
    return lru_cache(maxsize=2)(partial(epoch_permutation, seed, n_samples=n_samples))


def sample_id(counters: np.ndarray, seed: int, n_samples: int) -> np.ndarray:
    """Sample ids (int64, in [0, n_samples)) of global sample counters (int64, at least 0), of the same shape.

    Every block of n_samples counters starting at a multiple of n_samples visits each sample once.
    """
    epochs, positions = np.divmod(counters, n_samples)
    ids = np.empty_like(counters)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        ids[here] = _epochs(seed, n_samples)(int(epoch))[positions[here]]
    return ids


def accumulation_steps(batch_size: int, micro_batch: int, world_size: int) -> int:
    """Micro-batches that each process accumulates for one step: batch_size / (micro_batch * world_size).

    Raises UserError, with the nearest batch sizes that work, where that is not a whole number.
    """
    together = micro_batch * world_size
    if batch_size % together == 0:
        return batch_size // together
    below, above = batch_size // together * together, -(-batch_size // together) * together
    nearest = " or ".join(str(size) for size in (below, above) if size > 0)
    other = "" if batch_size % world_size else ", or data.micro_batch to auto"
    raise UserError(
        f"data.batch_size = {batch_size} cannot be divided: it must be a multiple of data.micro_batch x processes = "
        f"{micro_batch} x {world_size} = {together}. Set data.batch_size to {nearest}{other}."
    )


def validation_batches(
    store: TokenStore, context: int, batch: int, rank: int = 0, world_size: int = 1, val_tokens: int | None = None
) -> Iterator["torch.Tensor"]:
    """A rank's validation windows, int64 tensors (b, context + 1), b <= batch: numbers rank, rank + world_size, ...

    Over all ranks every window comes exactly once; the last partial batch is kept. Every rank gets the same number of
    batches, because a sharded model (ZeRO-3) waits for all ranks in each forward: a rank that has run out of windows
    gets batches of zero rows (shape (0, context + 1)), which must add nothing to the sums. With one process there are
    none of these. Raises UserError where the split is too short.
    """
    import torch

    samples = samples_in(store, context, val_tokens)
    per_rank = -(-samples // world_size)  # the most that any rank has: rank 0's
    mine = np.arange(rank, samples, world_size, dtype=np.int64)
    for first in range(0, per_rank, batch):
        yield torch.from_numpy(store.windows(mine[first : first + batch] * context, context + 1))
