"""Small corpora: cards with their text in a temporary folder, and prepared folders with known tokens."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from mup_lightning.config.schema import VOCABULARY_HASHES
from mup_lightning.data.card import Card, load_card
from mup_lightning.data.prepare import prepare
from mup_lightning.data.shards import Manifest
from mup_lightning.data.shards_old import TokenStore
from mup_lightning.data.tokenizer import load_tokenizer
from mup_lightning.data.writer import SplitWriter


def documents(n: int, words: int = 20) -> list[str]:
    """n different texts of ASCII words."""
    return [" ".join(f"w{i}x{(i * 7 + j * 13) % 31}" for j in range(words)) for i in range(n)]


@pytest.fixture
def make_card(tmp_path: Path) -> Callable[..., Card]:
    """make_card(texts or bytes, **keys): writes docs.jsonl (or source.files) and a card beside it."""

    def make(content: list[str] | bytes, file: str = "docs.jsonl", **keys: Any) -> Card:
        if isinstance(content, list):
            content = "".join(json.dumps({"text": text}) + "\n" for text in content).encode()
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(content)
        card = {
            "name": "small",
            "source": {"kind": "jsonl", "files": [file]},
            "validation": {"fraction": 0.2, "seed": 1},
            "licence": "none",
            **keys,
        }
        path = tmp_path / "card.yaml"
        path.write_text(yaml.safe_dump(card))
        return load_card(path)

    return make


@pytest.fixture
def make_corpus(tmp_path: Path) -> Callable[..., Path]:
    """make_corpus(train, val): a prepared folder of the bytes vocabulary with exactly these token counts.

    Token i of a split is (i * i + i // 7) % 251, so that windows at different places differ.
    """

    def make(train: int = 1000, val: int = 200, shard_tokens: int = 300, name: str = "corpus") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        splits = {}
        for split, tokens in (("train", train), ("val", val)):
            writer = SplitWriter(folder, split, shard_tokens)
            ids = expected_tokens(tokens)
            for start in range(0, tokens, 50):
                writer.append(ids[start : start + 50])
            writer.close_shard()
            splits[split] = writer.summary()
        manifest = Manifest(
            name=name,
            tokenizer="bytes",
            vocab_size=256,
            vocab_hash=VOCABULARY_HASHES["bytes"],
            eot=0,
            source_hash="0",
            source={},
            documents=1,
            text_bytes=1,
            skipped={},
            splits=splits,
            unigram_loss=1.0,
        )
        manifest.save(folder)
        return folder

    return make


@pytest.fixture
def corpus(make_corpus: Callable[..., Path]) -> Path:
    """1000 training and 200 validation tokens."""
    return make_corpus(train=1000, val=200)


def expected_tokens(n: int) -> np.ndarray:
    i = np.arange(n)
    return ((i * i + i // 7) % 251).astype(np.uint16)


def contents(folder: Path) -> dict[str, str]:
    """File names and sha256 of a folder."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def run(card, out, **options):
    return prepare(card, out, **{"tokenizer": "bytes", "progress": False, **options})


def texts_of(folder, split):
    """The documents of a split, as they come back out of the shards."""
    store = TokenStore.open(folder, split)
    tokenizer = load_tokenizer(store.manifest.tokenizer)
    ids = store.window(0, len(store))
    ends = np.flatnonzero(ids == tokenizer.eot)
    assert ends[-1] == len(ids) - 1  # the last document is ended too
    return [tokenizer.decode(part[part != tokenizer.eot]) for part in np.split(ids, ends + 1) if len(part)]


BAD = {
    "not UTF-8": b'{"text": "a\xff\xfeb"}',
    "blank line": b"",
    "not JSON": b'{"text": "a',
    "not a JSON object": b'["text"]',
    "no text": b'{"other": "x"}',
    "text is null": b'{"text": null}',
    "text is not a string": b'{"text": 5}',
    "empty": b'{"text": " \\n"}',
}


def with_bad_lines():
    lines = [json.dumps({"text": t}).encode() for t in documents(40)]
    return b"\n".join([*lines[:20], *BAD.values(), b'{"text": "half \\ud800 of a pair"}', *lines[20:]]) + b"\n"
