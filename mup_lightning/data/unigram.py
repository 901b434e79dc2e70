"""The loss of a model that knows word frequencies only: the first mark that a training run must pass."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mup_lightning.data.shards import DTYPE, Shard

CHUNK = 1 << 22  # tokens counted at a time


def unigram_loss(folder: Path, train: list[Shard], validation: list[Shard], vocab_size: int) -> float:
    """Mean cross-entropy (nats a token) of the validation tokens under the add-one-smoothed training frequencies:

    -sum_v m_v ln((n_v + 1) / (N + V)) / M, with n_v of N training and m_v of M validation tokens, V symbols.
    """
    n, m = count_tokens(folder, train, vocab_size), count_tokens(folder, validation, vocab_size)
    log_p = np.log((n + 1) / (n.sum() + vocab_size))
    return float(-(m * log_p).sum() / m.sum())


def count_tokens(folder: Path, shards: list[Shard], vocab_size: int) -> np.ndarray:
    """How often each token occurs in the shards: int64, shape (vocab_size,)."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    for shard in shards:
        tokens = np.memmap(folder / shard.file, dtype=DTYPE, mode="r")
        for start in range(0, len(tokens), CHUNK):
            counts += np.bincount(tokens[start : start + CHUNK], minlength=vocab_size)
    return counts
