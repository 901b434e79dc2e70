"""A synthetic corpus in the real shard format: uniformly random tokens cost what text costs."""

from pathlib import Path

import numpy as np

from mup_lightning.config.schema import VOCABULARIES, TokenizerName
from mup_lightning.data.prepare import unigram_loss
from mup_lightning.data.shards import DTYPE, Manifest, SplitWriter


def write_corpus(folder: Path, tokenizer: TokenizerName, *, train: int, validation: int) -> None:
    """Write a prepared corpus.

    Args:
        folder: is made.
        tokenizer: whose symbols are drawn.
        train: tokens to train on.
        validation: tokens to validate on.
    """
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    manifest, size = Manifest.begin("synthetic", tokenizer), VOCABULARIES[tokenizer].size
    for split, tokens in (("train", train), ("val", validation)):
        writer = SplitWriter(folder, split, tokens, manifest.splits[split])
        writer.append(generator.integers(size, size=tokens).astype(DTYPE))
        writer.close_shard()
    manifest.unigram_loss = unigram_loss(folder, manifest.splits, size)
    manifest.save(folder)
