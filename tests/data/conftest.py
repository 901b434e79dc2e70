"""Small corpora: cards with their text in a temporary folder, and prepared folders with known tokens."""

import hashlib
import json
from functools import partial

import numpy as np
import pytest
import yaml

from mup_lightning.data.card import load_card
from mup_lightning.data.prepare import prepare
from mup_lightning.data.shards import Manifest, SplitWriter, TokenStore
from mup_lightning.data.tokenizer import Tokenizer


def documents(n, words=20):
    """n different texts of ASCII words."""
    return [" ".join(f"w{i}x{(i * 7 + j * 13) % 31}" for j in range(words)) for i in range(n)]


def jsonl(texts):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def write_card(folder, content, file="docs.jsonl", **keys):
    """Write texts (or bytes) as docs.jsonl, or another file, and their card, into a folder."""
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).write_bytes(jsonl(content) if isinstance(content, list) else content)
    card = {
        "name": "small",
        "source": {"kind": "jsonl", "files": [file]},
        "validation": {"fraction": 0.2, "seed": 1},
        "licence": "none",
        **keys,
    }
    (folder / "card.yaml").write_text(yaml.safe_dump(card))
    return load_card(folder / "card.yaml")


@pytest.fixture
def make_card(tmp_path):
    """make_card(texts or bytes, **keys): see `write_card`."""
    return partial(write_card, tmp_path)


@pytest.fixture
def make_corpus(tmp_path):
    """make_corpus(train, val): a prepared folder of the bytes vocabulary with exactly these token counts.

    Token i of a split is (i * i + i // 7) % 251, so that windows at different places differ.
    """

    def make(train=1000, val=200, shard_tokens=300, name="corpus"):
        folder = tmp_path / name
        folder.mkdir()
        manifest = Manifest.begin(name, "bytes")
        for split, tokens in (("train", train), ("val", val)):
            writer = SplitWriter(folder, split, shard_tokens, manifest.splits[split])
            ids = expected_tokens(tokens)
            for start in range(0, tokens, 50):
                writer.append(ids[start : start + 50])
            writer.close_shard()
        manifest.save(folder)
        return folder

    return make


@pytest.fixture
def corpus(make_corpus):
    """1000 training and 200 validation tokens."""
    return make_corpus()


def expected_tokens(n):
    i = np.arange(n)
    return ((i * i + i // 7) % 251).astype(np.uint16)


def flip_a_bit(path, index=100):
    data = bytearray(path.read_bytes())
    data[index] ^= 1
    path.write_bytes(data)


def contents(folder):
    """File names and sha256 of a folder."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def run(card, out, **options):
    return prepare(card, out, **{"tokenizer": "bytes", "progress": False, **options})


def texts_of(folder, split):
    """The documents of a split, as they come back out of the shards."""
    store = TokenStore.open(folder, split)
    tokenizer = Tokenizer(store.manifest.tokenizer)
    ids = store.windows([0], len(store))[0]
    ends = np.flatnonzero(ids == tokenizer.eot)
    assert ends[-1] == len(ids) - 1  # the last document is ended too
    return [tokenizer.decode(text[text != tokenizer.eot]) for text in np.split(ids, ends + 1) if len(text)]


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


def with_bad_lines(n=40):
    lines = jsonl(documents(n)).splitlines()
    return b"\n".join([*lines[:20], *BAD.values(), b'{"text": "half \\ud800 of a pair"}', *lines[20:]]) + b"\n"
