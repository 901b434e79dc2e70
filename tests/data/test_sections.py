import random

from mup_lightning.data.card import Sections, Validation
from mup_lightning.data.sections import cut, is_validation

from .conftest import documents


def test_a_pattern_cuts_before_each_match():
    text = "front\nCHAPTER I\none\nchapter\nCHAPTER II\ntwo"
    assert cut(text, Sections(pattern="^CHAPTER")) == ["front\n", "CHAPTER I\none\nchapter\n", "CHAPTER II\ntwo"]
    assert cut("CHAPTER I\none", Sections(pattern="^CHAPTER")) == ["CHAPTER I\none"]  # no empty first section


def test_long_text_is_cut_after_paragraphs_then_lines_then_words():
    assert cut("aa bb\n\ncc\ndd", Sections(max_characters=9)) == ["aa bb\n\n", "cc\ndd"]
    assert cut("aa\n\nbb\ncc dd", Sections(max_characters=9)) == ["aa\n\n", "bb\ncc dd"]
    assert cut("aa bb\ncc dd", Sections(max_characters=9)) == ["aa bb\n", "cc dd"]
    assert cut("aaaa bbbb", Sections(max_characters=6)) == ["aaaa ", "bbbb"]
    assert cut("abcdefgh", Sections(max_characters=3)) == ["abc", "def", "gh"]


def test_cutting_loses_nothing():
    rng = random.Random(0)
    for longest in (1, 2, 7, 40):
        text = "".join(rng.choice("ab \n") for _ in range(500)) + "x"
        pieces = cut(text, Sections(max_characters=longest, pattern="^b"))
        assert all(len(piece) <= longest + 1 and piece.strip() for piece in pieces)  # + the second half of a blank line
        assert "".join(pieces).replace("\n", "").replace(" ", "") == text.replace("\n", "").replace(" ", "")


def test_the_split_is_a_function_of_text_and_seed():
    texts = documents(2000)
    chosen = [is_validation(text, Validation(0.1, seed=3)) for text in texts]
    assert 150 < sum(chosen) < 250
    assert chosen == [is_validation(text, Validation(0.1, seed=3)) for text in texts]
    assert chosen != [is_validation(text, Validation(0.1, seed=4)) for text in texts]
    # A larger fraction keeps what a smaller one chose.
    assert all(is_validation(text, Validation(0.2, seed=3)) for text, c in zip(texts, chosen, strict=True) if c)
