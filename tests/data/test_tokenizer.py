import base64
import hashlib
import random

import numpy as np
import pytest

from mup_lightning.config.schema import VOCABULARIES
from mup_lightning.data import tokenizer as tokenizer_module
from mup_lightning.data.tokenizer import Tokenizer, read_ranks
from mup_lightning.errors import UserError


@pytest.fixture(scope="module")
def gpt2():
    return Tokenizer("gpt2")


def test_known_ids(gpt2):
    [ids] = gpt2.encode_batch(["Hello world"])
    assert ids.dtype == np.uint16
    assert ids.tolist() == [15496, 995]


def test_words_are_cut_as_gpt2_does(gpt2):
    # What the definition says: a word takes one leading blank, a run of blanks leaves its last one to the word after
    # it, contractions, letters, digits and other signs do not mix.
    pieces = [gpt2.decode([i]) for i in gpt2.encode_batch(["  it's 2x!\n\n the"])[0]]
    assert pieces == [" ", " it", "'s", " 2", "x", "!", "\n\n", " the"]


def test_end_of_text_in_a_document_is_ordinary_text(gpt2):
    [ids] = gpt2.encode_batch(["a<|endoftext|>b"])
    assert gpt2.eot not in ids.tolist()
    assert gpt2.decode(ids) == "a<|endoftext|>b"
    assert gpt2.decode([gpt2.eot]) == "<|endoftext|>"


@pytest.mark.parametrize("name", ["gpt2", "bytes"])
def test_round_trip(name):
    tokenizer = Tokenizer(name)
    texts = ["", " ", "naïve café — 東京 🙂\r\n\ttabs", "x" * 5000, "\n" * 300, *[f"text {i}" for i in range(500)]]
    encoded = tokenizer.encode_batch(texts)
    assert [tokenizer.decode(ids) for ids in encoded] == texts
    assert all(ids.dtype == np.uint16 and (ids.size == 0 or ids.max() < VOCABULARIES[name].size) for ids in encoded)


BLANKS = " \t\n\r\x0b\x0c\x85\xa0\u1680\u2000\u200a\u2028\u2029\u202f\u205f\u3000"


def test_long_white_space_is_cut_where_no_token_changes(gpt2, monkeypatch):
    """Against the uncut encoding: short runs with a low limit, all characters with \\s of the engine or of Python."""
    chance = random.Random(0)
    signs = [*BLANKS, *"\x1c\x1f\u180e\u200b\ufeff", *"ab1.'s—é东", " ", " ", "\n", "  \n\n", "\t\t\t\t"]
    texts = ["".join(chance.choices(signs, k=chance.randrange(40))) for _ in range(3000)]
    texts += [
        f"{before}{blank * 20_000}{after}" for blank in BLANKS for before in ("", "a") for after in ("", "a", "1.")
    ]
    whole = gpt2.encode_batch(texts)
    for limit in (1, 2, 3, 8, 10_000):
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


def test_a_damaged_vocabulary_is_refused():
    line = base64.b64encode(b"a") + b" 0\n"
    assert read_ranks(line, hashlib.sha256(line).hexdigest()) == {b"a": 0}
    with pytest.raises(UserError, match="is damaged"):
        read_ranks(line + b" ", VOCABULARIES["gpt2"].sha256)
