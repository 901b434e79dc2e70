"""tokenizer.json, as `tokenizers` reads it, against our own vocabularies."""

import json
import lzma
import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Fast

from mup_lightning.data.tokenizer import Tokenizer
from mup_lightning.data.tokenizer_json import merges, tokenizer_json
from tests.data.test_tokenizer import BLANKS, END, byte_level, described

AUSTEN = Path(__file__).parents[2] / "data" / "austen.jsonl.xz"
SIGNS = [
    *BLANKS,
    *"\x01\x1c\x1f\u180e\u200b\ufeff\u0301Āab1.'s—é东½²٣Ⅻ\ufffd",
    *("'s", "'ll", "''", "'S", "  ", "  \n\n", "\t\t\t\t", "def f(x):\n    return", "1,234.5"),
    *("👩\u200d💻", "🙂", "नमस्ते", "ﬁ"),
]


def texts():
    """Awkward ones: signs of all kinds in any order, and any code points at all; and much of a novel."""
    chance = random.Random(0)
    yield from ("".join(chance.choices(SIGNS, k=chance.randrange(40))) for _ in range(3000))
    points = [point for point in range(1, 0x110000) if not 0xD800 <= point < 0xE000]
    yield from ("".join(map(chr, chance.sample(points, 20))) for _ in range(1000))
    yield from ("", "a" * 5000, " " * 5000, "\n" * 300)
    with lzma.open(AUSTEN, "rt", encoding="utf-8") as file:
        yield json.loads(next(file))["text"][:200_000]


@pytest.fixture(scope="module", params=["gpt2", "bytes", "own.yaml"])
def both(request, tmp_path_factory):
    source = request.param
    if source == "own.yaml":
        source = described(tmp_path_factory.mktemp("own") / source, special_tokens={"<s>": 262, "<eos>": 263})
    ours = Tokenizer(source)
    content, end = tokenizer_json(ours)
    return ours, Fast.from_str(content), end


def test_text_has_the_same_tokens_and_comes_back(both):
    ours, theirs, _ = both
    for text in texts():
        ids = ours.encode(text).tolist()
        assert theirs.encode(text).ids == ids, text
        assert theirs.decode(ids, skip_special_tokens=False) == text


def test_any_tokens_are_the_same_text(both):
    ours, theirs, end = both
    chance, size = random.Random(1), theirs.get_vocab_size()
    assert set(theirs.get_vocab().values()) == set(range(size))
    for _ in range(2000):
        ids = [chance.randrange(size) for _ in range(chance.randrange(20))]
        assert theirs.decode(ids, skip_special_tokens=False) == ours.decode(ids)
    assert theirs.token_to_id(end) == ours.eot
    assert theirs.encode(f"a{end}b").ids == [*theirs.encode("a").ids, ours.eot, *theirs.encode("b").ids]
    assert theirs.decode([ours.eot]) == ""  # left out, being special
    assert theirs.decode([ours.eot], skip_special_tokens=False) == ours.decode([ours.eot]) == end


def test_merges_are_recovered_from_ranks():
    ranks = {b"a": 0, b"b": 1, b"c": 2, b"ab": 3, b"bc": 4, b"abc": 5, b"abab": 6}
    # bc came after ab, so abc was merged from ab and c.
    assert list(merges(ranks)) == [(b"a", b"b"), (b"b", b"c"), (b"ab", b"c"), (b"ab", b"ab")]


def test_a_file_of_hugging_face_is_kept_as_it_is(tmp_path):
    file = byte_level(tmp_path / "own.json")
    assert tokenizer_json(Tokenizer(file)) == (file.read_text(), END)
