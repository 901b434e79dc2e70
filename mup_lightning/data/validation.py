"""Validation windows: in order, each exactly once over all processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from mup_lightning.data.sampler import samples_in
from mup_lightning.data.shards_old import TokenStore
from mup_lightning.errors import UserError

if TYPE_CHECKING:
    import torch


def validation_samples(store: TokenStore, context: int, val_tokens: int | None) -> int:
    """How many windows a validation pass covers. Raises UserError where there is none."""
    samples = samples_in(len(store), context)
    if samples < 1:
        raise UserError(
            f"the {store.split} split of {store.path} has {len(store)} tokens, but a context of {context} needs at "
            f"least {context + 1}. Use a shorter context, or a corpus with a larger validation fraction."
        )
    if val_tokens is None:
        return samples
    if val_tokens < context:
        raise UserError(
            f"data.val_tokens = {val_tokens} is less than one window of {context} tokens. "
            f"Set it to a multiple of {context}, or to null for the whole validation split."
        )
    return min(samples, val_tokens // context)


def validation_batches(
    store: TokenStore, context: int, batch: int, rank: int = 0, world_size: int = 1, val_tokens: int | None = None
) -> Iterator[torch.Tensor]:
    """This rank's validation windows, int64 tensors (b, context + 1), b <= batch: numbers rank, rank + world_size, ...

    Over all ranks every window comes exactly once; the last partial batch is kept. Every rank gets the same number of
    batches, because a sharded model (ZeRO-3) waits for all ranks in each forward: a rank that has run out of windows
    gets batches of zero rows (shape (0, context + 1)), which must add nothing to the sums. With one process there are
    none of these. Raises UserError where the split is too short.
    """
    import torch

    samples = validation_samples(store, context, val_tokens)
    per_rank = -(-samples // world_size)  # the most that any rank has: rank 0's share
    mine = np.arange(rank, samples, world_size, dtype=np.int64)
    for first in range(0, per_rank, batch):
        yield torch.from_numpy(store.windows(mine[first : first + batch] * context, context + 1))
