"""The format on disk: windows over shards, and everything that is not as the manifest says."""

import pickle

import numpy as np
import pytest

from mup_lightning.data.prepare import unigram_loss
from mup_lightning.data.shards import Manifest, TokenStore, check_vocabulary, manifest_hash
from mup_lightning.errors import UserError
from mup_lightning.files import read_json, write_json

from .conftest import expected_tokens


def edit_manifest(folder, **changes):
    path = folder / "manifest.json"
    write_json(path, read_json(path, "a manifest") | changes)


def test_windows_cross_shards(make_corpus):
    store = TokenStore.open(make_corpus(train=1000, shard_tokens=300), "train")
    tokens = expected_tokens(1000)
    assert len(store) == 1000
    assert [shard.tokens for shard in store.shards] == [300, 300, 300, 100]
    for start, length in ((0, 1000), (299, 2), (300, 300), (250, 700), (999, 1), (5, 0)):
        window = store.windows([start], length)[0]
        assert window.dtype == np.int64
        assert window.tolist() == tokens[start : start + length].tolist()
    many = store.windows([0, 590, 298], 20)
    assert many.tolist() == [tokens[s : s + 20].tolist() for s in (0, 590, 298)]
    for start, length in ((-1, 5), (990, 11)):
        with pytest.raises(IndexError, match="window outside the train split"):
            store.windows([start], length)[0]
    found = [store.locate(token) for token in (0, 299, 300, 999)]
    assert found == [("train-00000.bin", 0), ("train-00000.bin", 299), ("train-00001.bin", 0), ("train-00003.bin", 99)]


def test_a_store_travels_without_its_tokens(make_corpus):
    store = TokenStore.open(make_corpus(train=100_000, shard_tokens=10_000), "train")
    start = [9_990]
    assert store.windows(start, 20).shape == (1, 20)  # the maps are open
    data = pickle.dumps(store)
    assert len(data) < 5_000
    assert pickle.loads(data).windows(start, 20).tolist() == store.windows(start, 20).tolist()


@pytest.mark.parametrize(
    ("damage", "message", "verify"),
    [
        (None, "is missing; copy the corpus again", False),
        (lambda data: data[:-1], "has 599 bytes, expected 600", False),
        (lambda data: data + b"12", "has 602 bytes, expected 600", True),
        (lambda data: bytes([data[0] ^ 1]) + data[1:], "is damaged: its sha256 is", True),
    ],
)
def test_damaged_shards_are_named(corpus, damage, message, verify):
    path = corpus / "train-00001.bin"
    data = path.read_bytes()
    path.unlink()
    if damage:
        path.write_bytes(damage(data))
    with pytest.raises(UserError, match=rf"train-00001\.bin {message}"):
        TokenStore.open(corpus, "train", verify)
    if "sha256" in message:
        TokenStore.open(corpus, "train", verify=False)
    TokenStore.open(corpus, "val")


def test_an_id_beyond_the_vocabulary_is_found_by_place(corpus):
    edit_manifest(corpus, vocab_size=250)  # 250 occurs, and is now too large
    place = expected_tokens(1000).tolist().index(250)
    message = rf"train-{place // 300:05d}\.bin .* token id 250 at index {place % 300}, expected ids below 250"
    with pytest.raises(UserError, match=message):
        TokenStore.open(corpus, "train").windows([0, place - 3], 10)


@pytest.mark.parametrize(
    "changes", [{"format_version": 2}, {"dtype": "<u4"}, {"extra": 1}, {"splits": {"train": 3}}, "{", "[]", "null"]
)
def test_other_formats_are_refused(corpus, tmp_path, changes):
    if isinstance(changes, dict):
        edit_manifest(corpus, **changes)
    else:
        (corpus / "manifest.json").write_text(changes)
    with pytest.raises(UserError, match=r"manifest\.json"):
        Manifest.load(corpus)
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(UserError, match=r"no prepared corpus at .* mup-lightning data prepare data/austen"):
            TokenStore.open(folder, "train")


def test_another_vocabulary_is_refused_and_has_another_hash(corpus, make_corpus):
    manifest = Manifest.load(corpus)
    check_vocabulary(manifest, "bytes")
    with pytest.raises(UserError, match=r"has another vocabulary: tokenizer 'bytes' \(256 .*'gpt2' \(50257"):
        check_vocabulary(manifest, "gpt2")
    manifest.vocab_hash = "0" * 64
    with pytest.raises(UserError, match="another vocabulary"):
        check_vocabulary(manifest, "bytes")
    corpora = [make_corpus(name=name, val=val) for name, val in (("a", 200), ("b", 200), ("c", 201))]
    one, same, longer = map(Manifest.load, corpora)
    assert manifest_hash(one) == manifest_hash(same) != manifest_hash(longer)
    same.vocab_hash = "0"  # it follows the contents only
    assert manifest_hash(one) != manifest_hash(same)


def test_unigram_loss_by_hand(make_corpus):
    folder = make_corpus(train=100, val=30)
    train, val = expected_tokens(100).tolist(), expected_tokens(30).tolist()
    by_hand = -sum(np.log((train.count(v) + 1) / (100 + 256)) for v in val) / 30
    assert unigram_loss(folder, Manifest.load(folder).splits, 256) == pytest.approx(by_hand, rel=1e-12)


def test_a_corpus_of_an_earlier_version_is_read(corpus):
    """Its splits do not say the length of their text."""
    splits = read_json(corpus / "manifest.json", "a manifest")["splits"]
    assert [split.pop("text_bytes") for split in splits.values()] == [0, 0]
    edit_manifest(corpus, splits=splits)
    assert Manifest.load(corpus).splits["val"].text_bytes is None
    assert len(TokenStore.open(corpus, "train")) == 1000
