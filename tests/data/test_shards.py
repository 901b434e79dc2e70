import json
import pickle

import numpy as np
import pytest

from mup_lightning.data.shards import Manifest, check_vocabulary, manifest_hash
from mup_lightning.data.shards_old import TokenStore
from mup_lightning.data.unigram import unigram_loss
from mup_lightning.errors import UserError

from .conftest import expected_tokens


def edit_manifest(folder, **changes):
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_windows_cross_shards(make_corpus):
    store = TokenStore.open(make_corpus(train=1000, shard_tokens=300), "train")
    tokens = expected_tokens(1000)
    assert len(store) == 1000
    assert [shard.tokens for shard in store.shards] == [300, 300, 300, 100]
    for start, length in ((0, 1000), (299, 2), (300, 300), (250, 700), (999, 1), (5, 0)):
        window = store.window(start, length)
        assert window.dtype == np.int64
        assert window.tolist() == tokens[start : start + length].tolist()
    many = store.windows(np.array([0, 590, 298]), 20)
    assert many.tolist() == [tokens[s : s + 20].tolist() for s in (0, 590, 298)]
    for start, length in ((-1, 5), (990, 11)):
        with pytest.raises(IndexError, match="window outside the train split"):
            store.window(start, length)


def test_locate(make_corpus):
    store = TokenStore.open(make_corpus(train=1000, shard_tokens=300), "train")
    assert store.locate(0) == ("train-00000.bin", 0)
    assert store.locate(299) == ("train-00000.bin", 299)
    assert store.locate(300) == ("train-00001.bin", 0)
    assert store.locate(999) == ("train-00003.bin", 99)
    with pytest.raises(IndexError):
        store.locate(1000)


def test_a_store_travels_without_its_tokens(make_corpus):
    store = TokenStore.open(make_corpus(train=100_000, shard_tokens=10_000), "train")
    data = pickle.dumps(store)
    assert len(data) < 5_000
    assert pickle.loads(data).window(9_990, 20).tolist() == store.window(9_990, 20).tolist()


def test_the_files_are_what_the_format_says(make_corpus):
    folder = make_corpus(train=1000, shard_tokens=300)
    raw = b"".join((folder / f"train-{i:05d}.bin").read_bytes() for i in range(4))
    assert np.frombuffer(raw, dtype="<u2").tolist() == expected_tokens(1000).tolist()


def test_missing(make_corpus, tmp_path):
    with pytest.raises(UserError, match=r"no such folder.*mup-lightning data prepare data/austen\.yaml"):
        TokenStore.open(tmp_path / "nowhere", "train")
    with pytest.raises(UserError, match=r"it has no manifest\.json"):
        TokenStore.open(tmp_path, "train")
    folder = make_corpus()
    (folder / "train-00001.bin").unlink()
    with pytest.raises(UserError, match=r"train-00001\.bin is missing"):
        TokenStore.open(folder, "train", verify=False)
    (folder / "manifest.json").rename(folder / "journal.json")
    with pytest.raises(UserError, match="unfinished corpus"):
        TokenStore.open(folder, "train")


@pytest.mark.parametrize("verify", [True, False])
def test_a_truncated_shard_is_always_found(make_corpus, verify):
    folder = make_corpus()
    path = folder / "train-00002.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"train-00002\.bin has 599 bytes, expected 600 .* truncated"):
        TokenStore.open(folder, "train", verify=verify)
    path.write_bytes(path.read_bytes() + b"123")
    with pytest.raises(UserError, match="too long"):
        TokenStore.open(folder, "train", verify=verify)


def test_a_flipped_bit_is_named(make_corpus):
    folder = make_corpus()
    path = folder / "train-00001.bin"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"train-00001\.bin is damaged: its sha256 is"):
        TokenStore.open(folder, "train")
    TokenStore.open(folder, "train", verify=False)
    TokenStore.open(folder, "val")


def test_an_id_beyond_the_vocabulary_is_found_by_place(make_corpus):
    folder = make_corpus()
    edit_manifest(folder, vocab_size=250)  # 250 occurs, and is now too large
    place = expected_tokens(1000).tolist().index(250)
    message = rf"train-{place // 300:05d}\.bin has the token id 250 at place {place % 300}, .* 250 symbols"
    with pytest.raises(UserError, match=message):
        TokenStore.open(folder, "train")
    store = TokenStore.open(folder, "train", verify=False)
    with pytest.raises(UserError, match=message):
        store.windows(np.array([0, place - 3]), 10)


def test_other_formats_are_refused(make_corpus):
    folder = make_corpus()
    edit_manifest(folder, format_version=2)
    with pytest.raises(UserError, match="format version 2, this program reads version 1"):
        Manifest.load(folder)
    edit_manifest(folder, format_version=1, dtype="<u4")
    with pytest.raises(UserError, match="dtype"):
        Manifest.load(folder)
    edit_manifest(folder, dtype="<u2", extra=1)
    with pytest.raises(UserError, match="extra"):
        Manifest.load(folder)
    edit_manifest(folder, splits={"train": 3})
    with pytest.raises(UserError, match="manifest"):
        Manifest.load(folder)
    for text in ("{", "[]", "null"):
        (folder / "manifest.json").write_text(text)
        with pytest.raises(UserError, match=r"manifest\.json"):
            Manifest.load(folder)


def test_another_vocabulary_is_refused(make_corpus):
    manifest = Manifest.load(make_corpus())
    check_vocabulary(manifest, "bytes")
    with pytest.raises(UserError, match=r"manifest of another vocabulary: .*'bytes' \(256 .*'gpt2' \(50257"):
        check_vocabulary(manifest, "gpt2")
    manifest.vocab_hash = "0" * 64
    with pytest.raises(UserError, match="another vocabulary"):
        check_vocabulary(manifest, "bytes")


def test_the_hash_follows_the_contents_only(make_corpus):
    one, same = Manifest.load(make_corpus(name="a")), Manifest.load(make_corpus(name="b"))
    longer, other_val = Manifest.load(make_corpus(1001, name="c")), Manifest.load(make_corpus(val=201, name="d"))
    assert manifest_hash(one) == manifest_hash(same)
    assert len({manifest_hash(m) for m in (one, longer, other_val)}) == 3
    same.vocab_hash = "0"
    assert manifest_hash(one) != manifest_hash(same)


def test_manifest_round_trip(make_corpus, tmp_path):
    manifest = Manifest.load(make_corpus())
    manifest.save(tmp_path)
    assert Manifest.load(tmp_path) == manifest


def test_unigram_loss_by_hand(make_corpus):
    folder = make_corpus(train=100, val=30)
    manifest = Manifest.load(folder)
    train, val = expected_tokens(100).tolist(), expected_tokens(30).tolist()
    by_hand = -sum(np.log((train.count(v) + 1) / (100 + 256)) for v in val) / 30
    found = unigram_loss(folder, manifest.splits["train"].shards, manifest.splits["val"].shards, 256)
    assert found == pytest.approx(by_hand, rel=1e-12)
