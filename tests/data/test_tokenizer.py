import base64
import hashlib
import random
import shutil
import sys
from importlib import resources

import numpy as np
import pytest
import tokenizers
import yaml
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from mup_lightning.config.data import VOCABULARIES
from mup_lightning.data import tokenizer as tokenizer_module
from mup_lightning.data.card import is_validation
from mup_lightning.data.encodings import _public, read_ranks
from mup_lightning.data.shards import TokenStore
from mup_lightning.data.tokenizer import Tokenizer
from mup_lightning.errors import UserError

from .conftest import documents, run


@pytest.fixture(scope="module")
def gpt2():
    return Tokenizer("gpt2")


def test_words_are_cut_as_gpt2_does(gpt2):
    """What the definition says: a word takes one leading blank, a run of blanks leaves its last one to the word after
    it, contractions, letters, digits and other signs do not mix; the end of text in a document is ordinary text.
    """
    ids = gpt2.encode("Hello world")
    assert (ids.dtype, ids.tolist()) == (np.uint16, [15496, 995])
    pieces = [gpt2.decode([i]) for i in gpt2.encode("  it's 2x!\n\n the")]
    assert pieces == [" ", " it", "'s", " 2", "x", "!", "\n\n", " the"]
    ids = gpt2.encode("a<|endoftext|>b")
    assert gpt2.eot not in ids
    assert gpt2.decode(ids) == "a<|endoftext|>b"
    assert gpt2.decode([gpt2.eot]) == "<|endoftext|>"


BLANKS = " \t\n\r\x0b\x0c\x85\xa0\u1680\u2000\u200a\u2028\u2029\u202f\u205f\u3000"


def test_long_white_space_is_cut_where_no_token_changes(gpt2, monkeypatch):
    """Against the uncut encoding: short runs with a low limit, all characters with \\s of the engine or of Python."""
    chance = random.Random(0)
    signs = [*BLANKS, *"\x1c\x1f\u180e\u200b\ufeff", *"ab1.'s—é东", " ", " ", "\n", "  \n\n", "\t\t\t\t"]
    texts = ["".join(chance.choices(signs, k=chance.randrange(40))) for _ in range(1000)]
    texts += [
        f"{before}{blank * 2_000}{after}" for blank in BLANKS for before in ("", "a") for after in ("", "a", "1.")
    ]
    whole = gpt2.encode_batch(texts)
    for limit in (1, 2, 3, 8, 1_000):
        monkeypatch.setattr(tokenizer_module, "LONGEST_BLANK", limit)
        cut = gpt2.encode_batch(texts)
        assert all(np.array_equal(a, b) for a, b in zip(cut, whole, strict=True))


@pytest.mark.parametrize("sign", [" ", "\n", "\u3000", " \n", "a", "1", "!"])
def test_no_run_is_too_long(gpt2, sign):
    text = f"a{sign * (1_100_000 // len(sign))}\n b"
    assert gpt2.decode(gpt2.encode_batch([text])[0]) == text


def test_bytes_are_bytes():
    tokenizer = Tokenizer("bytes")
    assert tokenizer.encode_batch(["Aé"])[0].tolist() == [65, 0xC3, 0xA9]
    assert VOCABULARIES["bytes"].sha256 == hashlib.sha256(bytes(range(256))).hexdigest()
    assert tokenizer.decode([0xC3]) == "\ufffd"


RANKS = b"".join(
    base64.b64encode(token) + b" %d\n" % rank
    for rank, token in enumerate([*(bytes([i]) for i in range(256)), b"he", b"the", b" the", b"12", b"123", b"1231"])
)
LINES = ["the cat sat on the mat and the cat was fat", "naïve café — 東京 🙂", "  two\n\nlines 1234"]
END = "<|endoftext|>"


def byte_level(path, vocabulary=300):
    """A tokenizer.json of GPT-2's kind."""
    found = tokenizers.Tokenizer(models.BPE())
    found.pre_tokenizer, found.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    options = {"vocab_size": 300, "initial_alphabet": pre_tokenizers.ByteLevel.alphabet()}
    found.train_from_iterator(LINES * 50, trainers.BpeTrainer(special_tokens=[END], show_progress=False, **options))
    found.add_tokens([f"[{i}]" for i in range(vocabulary - 300)])
    found.save(str(path))
    return path


def byte_fallback(path):
    """A tokenizer.json of Llama's kind, which puts a token before every text unless told not to, and cuts it short."""
    found = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    found.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    found.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    options = {"vocab_size": 320, "special_tokens": special, "show_progress": False}
    found.train_from_iterator(LINES[:1] * 50, trainers.BpeTrainer(**options))
    found.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    found.enable_truncation(4)
    found.save(str(path))
    return path


def described(path, **keys):
    (path.parent / "own.tiktoken").write_bytes(RANKS)
    keys = {"file": "own.tiktoken", "pattern": "cl100k_base", "special_tokens": {END: 300}, **keys}
    path.write_text(yaml.safe_dump({key: value for key, value in keys.items() if value}))
    return path


MADE = {"tokenizer.json": byte_level, "llama.json": byte_fallback, "own.yaml": described}


@pytest.mark.parametrize(
    ("source", "end"),
    [("gpt2", END), ("bytes", "\0"), ("tokenizer.json", END), ("llama.json", "</s>"), ("own.yaml", END)],
)
def test_text_comes_back(tmp_path, source, end):
    """Its own special tokens are text, nothing is put around or cut off; a copy of a file is the same vocabulary."""
    (tmp_path / "mine").mkdir()
    tokenizer = Tokenizer(MADE[source](tmp_path / "mine" / source) if source in MADE else source)
    assert tokenizer.name == {"tokenizer.json": "mine"}.get(source, source.partition(".")[0])
    texts = [*LINES, "", " ", "\r\n\ttabs", "x" * 5000, "\n" * 300, *(f"text {i}" for i in range(500))]
    texts += [f"a {end} b", end] if source != "bytes" else []
    encoded = tokenizer.encode_batch(texts)
    assert [tokenizer.decode(ids) for ids in encoded] == texts
    assert tokenizer.decode([tokenizer.eot]) == end
    assert tokenizer.lengths.shape == (tokenizer.vocab_size,)
    for text, ids in zip(texts, encoded, strict=True):
        assert ids.dtype == np.dtype("<u2")
        assert tokenizer.eot not in ids
        assert ids.size == 0 or ids.max() < tokenizer.vocab_size
        assert tokenizer.encode(text).tolist() == ids.tolist()
        assert tokenizer.lengths[ids].sum() + tokenizer.lengths[tokenizer.eot] * bool(text) == len(text.encode())
    if source not in MADE:
        assert (tokenizer.vocab_size, tokenizer.lengths[tokenizer.eot]) == (VOCABULARIES[source].size, 0)
        return
    assert len(encoded[0]) < len(LINES[0])  # merges are used
    for copy in ("run", "moved"):
        tokenizer.save(tmp_path / copy)
        tokenizer = Tokenizer.find(tokenizer.reference, tmp_path, tmp_path / copy)
        assert tokenizer.encode(LINES[0]).tolist() == encoded[0].tolist()
    with pytest.raises(UserError, match=f"tokenizer {tokenizer.reference} is in none of"):
        Tokenizer.find(tokenizer.reference, tmp_path)


def test_the_pattern_of_a_public_encoding(tmp_path, gpt2):
    """cl100k_base cuts digits by three, GPT-2 does not; its own rank file is recognised whatever it is called."""
    numbers = {}
    for pattern in ("cl100k_base", "r50k_base", r"\p{L}+|\p{N}|[^\p{L}\p{N}]"):
        found = Tokenizer(described(tmp_path / "own.yaml", pattern=pattern))
        numbers[pattern] = [found.decode([i]) for i in found.encode("the 1231")]
    assert list(numbers.values()) == [["the", " ", "123", "1"], ["the", " ", "1231"], ["the", " ", *"1231"]]
    copy = tmp_path / "r50k_base.tiktoken"
    with resources.as_file(resources.files("mup_lightning.data") / "vocabulary" / "gpt2.tiktoken") as file:
        shutil.copy(file, copy)
    same = Tokenizer(copy)
    assert same.reference == "gpt2"
    as_other = Tokenizer(described(tmp_path / "other.yaml", file=copy.name, special_tokens={END: 50256}))
    assert as_other.reference.startswith("r50k_base:")
    assert as_other.vocabulary.sha256 != gpt2.vocabulary.sha256
    assert as_other.encode("Hello world").tolist() == gpt2.encode("Hello world").tolist()
    known = dict(_public())
    assert known["o200k_base"]["special_tokens"][END] == 199999
    assert known["cl100k_base"]["sha256"].startswith("223921b7")


def test_more_than_65536_symbols(tmp_path, make_card):
    """Ids above them survive, and the hash tells vocabularies apart."""
    file = byte_level(tmp_path / "large.json", 300 + 70_000)
    card = make_card([*(f"{text} [69999]" for text in documents(40)), f"a {END} b"])
    manifest = run(card, tmp_path / "out", tokenizer=str(file))
    assert (manifest.dtype, manifest.vocab_size, manifest.tokenizer) == ("<u4", 70_300, "large")
    tokenizer = Tokenizer.find(f"large:{manifest.vocab_hash}", tmp_path / "out")
    ids = TokenStore.open(tmp_path / "out", "val").windows([0], manifest.splits["val"].tokens)[0]
    assert ids.max() == 70_299
    texts = tokenizer.decode(ids).split(END)[:-1]
    assert texts == [t for t in [f"{t} [69999]" for t in documents(40)] if is_validation(t, card.validation)]
    assert manifest.splits["val"].text_bytes == sum(len(text.encode()) for text in texts)
    assert run(card, tmp_path / "out", tokenizer=str(file)) == manifest
    assert run(card, tmp_path / "out", tokenizer=str(tmp_path / "out" / "tokenizer.yaml")) == manifest
    with pytest.raises(UserError, match="of another source, card or tokenizer"):
        run(card, tmp_path / "out", tokenizer=str(byte_level(tmp_path / "other.json")))


REFUSED = {
    "gpt3": ("gpt3", None, r"tokenizer is gpt3, which does not come with the package; expected gpt2, bytes, or a file"),
    "no file": ("none.json", None, r"which is no file"),
    "not JSON": ("bad.json", b"{", r"bad\.json cannot be read: .*expected Hugging Face's tokenizer\.json"),
    "ranks that nobody knows": ("own.tiktoken", RANKS, r"the file of no public encoding .*cl100k_base.*description"),
    "no ranks": ("x.yaml", {"file": "bad.json", "pattern": "x"}, r"pattern and special_tokens are for \.tiktoken"),
    "no pattern": ("x.yaml", {"pattern": None}, r"pattern is missing; expected a regular expression, or one of gpt2"),
    "a broken one": ("x.yaml", {"pattern": "("}, r"pattern is no regular expression"),
    "no end": ("x.yaml", {"special_tokens": {"<e>": 300}}, r"which one ends a document is unclear .*<e>"),
    "another end": ("x.yaml", {"end_of_text": "<e>"}, r"end_of_text is '<e>', which is none of .*\(<\|endoftext\|>\)"),
    "a key": ("x.yaml", {"patern": "x"}, r"patern; did you mean pattern"),
    "no such file": ("x.yaml", {"file": "y.json"}, r"file is 'y\.json', which is not there"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_tokenizer_is_refused_by_name(tmp_path, case):
    name, content, message = REFUSED[case]
    (tmp_path / "bad.json").write_text("{")
    if isinstance(content, dict):
        described(tmp_path / name, **content)
    elif content:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        Tokenizer(name if case == "gpt3" else tmp_path / name).vocabulary  # noqa: B018


def test_damaged_ranks_and_a_missing_library_are_refused(tmp_path, monkeypatch):
    path = described(tmp_path / "own.yaml")
    assert read_ranks(tmp_path / "own.tiktoken", hashlib.sha256(RANKS).hexdigest())[b"the"] == 257
    with pytest.raises(UserError, match="is damaged"):
        read_ranks(tmp_path / "own.tiktoken", VOCABULARIES["gpt2"].sha256)
    for content, message in ((b"!! 1\n", "is no rank file"), (RANKS.partition(b"\n")[2], "no token for the byte 0")):
        (tmp_path / "own.tiktoken").write_bytes(content)
        with pytest.raises(UserError, match=message):
            Tokenizer(path).encode("a")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"needs the library tokenizers, .*pip install 'mup-lightning\[tokenizers\]'"):
        Tokenizer(byte_level(tmp_path / "a.json")).encode("a")
