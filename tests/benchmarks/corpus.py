"""A synthetic corpus in the real shard format: uniformly random tokens cost what text costs."""

from pathlib import Path

import numpy as np

from mup_lightning.config.schema import EOT_IDS, VOCAB_SIZES, VOCABULARY_HASHES, TokenizerName
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
    splits = {}
    for split, tokens in (("train", train), ("val", validation)):
        writer = SplitWriter(folder, split, tokens)
        writer.append(generator.integers(VOCAB_SIZES[tokenizer], size=tokens).astype(DTYPE))
        writer.close_shard()
        splits[split] = writer.split
    Manifest(
        name="synthetic",
        tokenizer=tokenizer,
        vocab_size=VOCAB_SIZES[tokenizer],
        vocab_hash=VOCABULARY_HASHES[tokenizer],
        eot=EOT_IDS[tokenizer],
        source_hash="",
        source={},
        documents=2,
        text_bytes=0,
        skipped={},
        splits=splits,
        unigram_loss=unigram_loss(folder, splits, VOCAB_SIZES[tokenizer]),
    ).save(folder)
