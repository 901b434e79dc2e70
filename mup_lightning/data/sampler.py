"""Which samples a step reads: pure functions of a counter, so that resuming is exact and the world size may change.

A *sample* is a window of `context + 1` tokens; windows lie at stride `context`, so the target of a window's last
position is the first token of the next window and every token but the first is a target exactly once an epoch.
A *counter* numbers the samples of a whole run: step s owns the counters [s * batch_size, (s + 1) * batch_size),
whatever the number of processes. A counter's *sample id* is its place in the shuffled epoch it falls into.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from mup_lightning.errors import UserError


def samples_in(tokens: int, context: int) -> int:
    """How many windows of `context + 1` tokens at stride `context` fit into `tokens` tokens (0 if none)."""
    return max(0, (tokens - 1) // context)


@lru_cache(maxsize=2)  # a batch touches at most two epochs as long as it is smaller than one
def epoch_permutation(seed: int, epoch: int, n_samples: int) -> np.ndarray:
    """The order of an epoch: a permutation of 0 .. n_samples - 1 (int64, read-only).

    Sorting raw Philox output gives a uniform permutation (ties have probability n^2 / 2^65 and are broken by index)
    that, unlike `Generator.permutation`, NumPy guarantees never to change between its versions (NEP 19).
    """
    raw = np.random.Philox(np.random.SeedSequence((seed, epoch))).random_raw(n_samples)
    order = np.argsort(raw, kind="stable").astype(np.int64, copy=False)
    order.flags.writeable = False
    return order


def sample_id(counter: np.ndarray | int, seed: int, n_samples: int) -> np.ndarray:
    """Sample ids (int64, in [0, n_samples)) of global sample counters, of the same shape.

    Every block of n_samples counters starting at a multiple of n_samples visits each sample once.
    Raises ValueError where there is no sample to take or a counter is negative.
    """
    counters = np.asarray(counter, dtype=np.int64)
    if n_samples < 1 or (counters.size and counters.min() < 0):
        raise ValueError(f"need n_samples >= 1 and counters >= 0, got n_samples = {n_samples}, counters {counters}")
    epochs, positions = np.divmod(counters, n_samples)
    ids = np.empty_like(counters)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        ids[here] = epoch_permutation(seed, int(epoch), n_samples)[positions[here]]
    return ids


def accumulation_steps(batch_size: int, micro_batch: int, world_size: int) -> int:
    """Micro-batches each process adds up for one step: batch_size / (micro_batch * world_size).

    Raises UserError, with the nearest batch sizes that work, where that is not a whole number.
    """
    together = micro_batch * world_size
    if min(batch_size, micro_batch, world_size) >= 1 and batch_size % together == 0:
        return batch_size // together
    below, above = batch_size // together * together, -(-batch_size // together) * together
    nearest = " or ".join(str(size) for size in (below, above) if size > 0)
    raise UserError(
        f"data.batch_size = {batch_size} cannot be shared out: it must be a multiple of data.micro_batch x processes = "
        f"{micro_batch} x {world_size} = {together}. Set data.batch_size to {nearest}, or change data.micro_batch."
    )


def batch_counters(
    step: int, micro_step: int, rank: int, *, batch_size: int, micro_batch: int, world_size: int
) -> np.ndarray:
    """The global sample counters (int64, shape (micro_batch,)) that one process reads in one micro-step of a step.

    Over all micro-steps (outer) and ranks (inner) they run through [step * batch_size, (step + 1) * batch_size) in
    order, so the global batch is the same whatever the world size and the accumulation.
    """
    steps = accumulation_steps(batch_size, micro_batch, world_size)
    if not (step >= 0 and 0 <= micro_step < steps and 0 <= rank < world_size):
        raise ValueError(f"no micro-step {micro_step} of {steps} on rank {rank} of {world_size} at step {step}")
    first = step * batch_size + (micro_step * world_size + rank) * micro_batch
    return np.arange(first, first + micro_batch, dtype=np.int64)
