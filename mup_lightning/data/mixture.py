"""Several prepared corpora in one run: which source a sample comes from is a pure function of its place in the run."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from mup_lightning.config.data import DataConfig
from mup_lightning.data.sampler import sample_id, samples_in
from mup_lightning.data.shards import Manifest, Split, TokenStore, manifest_hash
from mup_lightning.files import json_sha256


class Corpora:
    """The corpora of a run in the order of data.path, by their manifests; `shares` and `manifests` are by folder.

    Raises UserError where one is missing or damaged.
    """

    def __init__(self, config: DataConfig) -> None:
        self.shares = config.sources
        self.manifests = {folder: Manifest.load(folder) for folder in self.shares}

    @property
    def names(self) -> list[str]:
        """What the sources are called in curves: the names of their folders, or the whole paths where two are equal."""
        short = [Path(folder).name for folder in self.shares]
        return short if len(set(short)) == len(short) else list(self.shares)

    @property
    def hash(self) -> str:
        """The one corpus's hash; of several a hash of theirs and their shares, in order."""
        hashes = [manifest_hash(manifest) for manifest in self.manifests.values()]
        if len(hashes) == 1:
            return hashes[0]
        return json_sha256(list(zip(hashes, map(str, self.shares.values()), strict=True)))

    @property
    def unigram_loss(self) -> float:
        """See `Manifest`; of several the mean by their shares, as the validation loss is."""
        return self.mean([manifest.unigram_loss for manifest in self.manifests.values()])

    def mean(self, losses: Sequence[float]) -> float:
        """The loss on the mixture of a loss on each source."""
        return sum(float(share) * loss for share, loss in zip(self.shares.values(), losses, strict=True))

    def validation_tokens(self, val_tokens: int | None) -> int:
        """How many tokens one validation reads, `val_tokens` of each source at most."""
        return sum(min(val_tokens or split.tokens, split.tokens) for split in self._splits("val"))

    def epochs(self, tokens: int) -> float:
        """How often a run of so many tokens reads the source that it reads most often."""
        splits = zip(self.shares.values(), self._splits("train"), strict=True)
        return max(float(share) * tokens / split.tokens for share, split in splits)

    def _splits(self, name: str) -> list[Split]:
        return [manifest.splits[name] for manifest in self.manifests.values()]


class Samples:
    """The training samples of a run by their counters (see `sampler`), from one corpus or several.

    Each source is shuffled by itself, epoch by epoch. Raises UserError where one is shorter than a sample.
    """

    def __init__(self, stores: Sequence[TokenStore], shares: Sequence[Fraction], context: int, seed: int) -> None:
        self.stores, self.shares, self.context, self.seed = stores, shares, context, seed
        self.sizes = [samples_in(store, context) for store in stores]

    def places(self, counters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of each counter the index of its source, and its sample id in that; both int64, of the counters' shape."""
        if len(self.stores) == 1:
            return np.zeros_like(counters), sample_id(counters, self.seed, self.sizes[0])
        remaining = [share / sum(self.shares[i:]) for i, share in enumerate(self.shares)]
        drawn = np.array([source_of(int(counter), remaining) for counter in counters], dtype=np.int64)
        sources, ids = drawn.reshape(-1, 2).T.copy()
        for source in np.unique(sources):
            here = sources == source
            ids[here] = sample_id(ids[here], self.seed, self.sizes[source])
        return sources, ids

    def windows(self, counters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of each counter the index of its source (n,), and its tokens (n, context + 1), int64."""
        sources, ids = self.places(counters)
        tokens = np.empty((len(counters), self.context + 1), dtype=np.int64)
        for source in np.unique(sources):
            here = sources == source
            tokens[here] = self.stores[source].windows(ids[here] * self.context, self.context + 1)
        return sources, tokens


def source_of(counter: int, remaining: Sequence[Fraction]) -> tuple[int, int]:
    """The source of a sample, and how many samples of the run that source has given before.

    The first source has given the whole number nearest to counter · share of the first `counter` samples; those that
    are left are dealt out in the same way among the others, of which `remaining[i]` is the share of source i in all
    from i on. So the mixture holds in every batch and every stretch of a run, up to a sample or two, while lots would
    be off by the root of its length, and add that to the gradient's noise. In whole numbers: no rounding grows.
    """
    for source, share in enumerate(remaining):
        p, q = share.numerator, share.denominator
        before, after = ((2 * n * p + q) // (2 * q) for n in (counter, counter + 1))
        if after > before:
            return source, before
        counter -= before
    raise AssertionError("the last source takes all that is left")
