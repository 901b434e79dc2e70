"""tokenizer.json, as `tokenizers` reads it, against our own vocabularies."""

import json
import lzma
import random
from base64 import b64encode
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Fast

from mup_lightning.data.tokenizer import Tokenizer
from mup_lightning.data.tokenizer_json import merges, tokenizer_json
from tests.data.test_tokenizer import END, byte_level

AUSTEN = Path(__file__).parents[2] / "data" / "austen.jsonl.xz"
BLANKS = " \t\n\r\x0b\x0c\x85\xa0\u1680\u2000\u200a\u2028\u2029\u202f\u205f\u3000"
SIGNS = [
    *BLANKS,
    *"\x01\x1c\x1f\u180e\u200b\ufeff\u0301Āab1.'s—é东½²٣Ⅻ\ufffd",
    *[
        "'s",
        "'ll",
        "''",
        "'S",
        "  ",
        "  \n\n",
        "\t\t\t\t",
        "def f(x):\n    return",
        "1,234.5",
        "👩\u200d💻",
        "🙂",
        "नमस्ते",
        "ﬁ",
    ],
]


def texts():
    """Awkward ones: signs of all kinds in any order, and any code points at all."""
    chance = random.Random(0)
    yield from ("".join(chance.choices(SIGNS, k=chance.randrange(40))) for _ in range(3000))
    points = [point for point in range(1, 0x110000) if not 0xD800 <= point < 0xE000]
    yield from ("".join(map(chr, chance.sample(points, 20))) for _ in range(1000))
    yield from ("", "a" * 5000, " " * 5000, "\n" * 300)


@pytest.fixture(scope="module", params=["gpt2", "bytes"])
def both(request):
    ours = Tokenizer(request.param)
    content, end = tokenizer_json(ours)
    return ours, Fast.from_str(content), end


def test_text_has_the_same_tokens_and_comes_back(both):
    ours, theirs, _ = both
    for text in texts():
        ids = ours.encode_batch([text])[0].tolist()
        assert theirs.encode(text).ids == ids, text
        assert theirs.decode(ids, skip_special_tokens=False) == text


def test_the_demo_corpus_has_the_same_tokens(both):
    ours, theirs, _ = both
    with lzma.open(AUSTEN, "rt", encoding="utf-8") as file:
        text = json.loads(next(file))["text"]
    assert len(text) > 100_000
    assert theirs.encode(text).ids == ours.encode_batch([text])[0].tolist()


def test_any_tokens_are_the_same_text(both):
    ours, theirs, _ = both
    chance, size = random.Random(1), theirs.get_vocab_size()
    assert set(theirs.get_vocab().values()) == set(range(size))
    for _ in range(2000):
        ids = [chance.randrange(size) for _ in range(chance.randrange(20))]
        assert theirs.decode(ids, skip_special_tokens=False) == ours.decode(ids)


def test_the_end_of_text_is_one_token(both):
    ours, theirs, end = both
    assert theirs.token_to_id(end) == ours.eot
    assert theirs.encode(f"a{end}b").ids == [*theirs.encode("a").ids, ours.eot, *theirs.encode("b").ids]
    assert theirs.decode([ours.eot]) == ""  # left out, being special
    assert theirs.decode([ours.eot], skip_special_tokens=False) == ours.decode([ours.eot]) == end


def test_merges_are_recovered_from_ranks():
    ranks = {b"a": 0, b"b": 1, b"c": 2, b"ab": 3, b"bc": 4, b"abc": 5, b"abab": 6}
    # bc came after ab, so abc was merged from ab and c.
    assert list(merges(ranks)) == [(b"a", b"b"), (b"b", b"c"), (b"ab", b"c"), (b"ab", b"ab")]


def test_vocabularies_from_files(tmp_path):
    file = byte_level(tmp_path / "own.json")
    assert tokenizer_json(Tokenizer(file)) == (file.read_text(), END)
    ranks = "".join(f"{b64encode(bytes([byte])).decode()} {byte}\n" for byte in range(256))
    (tmp_path / "own.tiktoken").write_text(ranks + f"{b64encode(b'is').decode()} 256\n")
    about = "file: own.tiktoken\npattern: cl100k_base\nspecial_tokens: {'<s>': 257, '<eos>': 258}\n"
    (tmp_path / "own.yaml").write_text(about)
    ours = Tokenizer(tmp_path / "own.yaml")
    content, end = tokenizer_json(ours)
    theirs = Fast.from_str(content)
    assert (end, theirs.token_to_id(end)) == ("<eos>", 258)
    for text in texts():
        ids = ours.encode(text).tolist()
        assert theirs.encode(text).ids == ids, text
        assert theirs.decode(ids) == text
