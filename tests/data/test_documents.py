"""Reading, cutting and splitting documents."""

import bz2
import gzip
import lzma
import random
import tracemalloc

import huggingface_hub
import pyarrow
import pyarrow.parquet
import pytest

from mup_lightning.data.card import Sections, Validation
from mup_lightning.data.documents import DocumentReader, cut, is_validation
from mup_lightning.data.shards import Manifest
from mup_lightning.errors import UserError

from .conftest import BAD, documents, jsonl, run, with_bad_lines


def zst(data):
    return pyarrow.Codec("zstd").compress(data, asbytes=True)


PACKED = {"": bytes, ".xz": lzma.compress, ".gz": gzip.compress, ".bz2": bz2.compress, ".zst": zst}


def reader(card, position=None):
    return DocumentReader(card, card.input_files(), lambda text: None, Manifest.begin("any", "bytes"), position)


def read(documents):
    """The usable texts, and how many were left out for which reason."""
    return [text for batch in documents for text in batch], documents.manifest.skipped


@pytest.mark.parametrize("ending", PACKED)
def test_compressed_files_keep_every_byte_and_are_refused_when_truncated(make_card, ending):
    name, source = f"d.jsonl{ending}", {"kind": "jsonl", "files": f"d.jsonl{ending}"}
    texts = [f"£ {text} ü" for text in documents(300)]
    data = PACKED[ending](jsonl(texts) + b'{"text": "\xff"}')
    assert read(reader(make_card(data, file=name, source=source))) == (texts, {"not UTF-8": 1})
    if ending:
        with pytest.raises(UserError, match=rf"reading .*d\.jsonl\{ending} failed after document \d+: .*whole"):
            read(reader(make_card(data[: len(data) // 2], file=name, source=source)))


def test_text_files_by_file_and_by_line(make_card, tmp_path):
    for i, text in enumerate(documents(30)):
        (tmp_path / f"t{i:02d}.txt").write_bytes(f"\ufeff{text}\r\nsecond line\n".encode())
    card = make_card([], source={"kind": "text", "files": "t*.txt"})
    assert read(reader(card))[0] == [f"{text}\nsecond line\n" for text in documents(30)]
    card = make_card([], source={"kind": "text", "files": "t*.txt", "document": "line"})
    assert read(reader(card))[0] == [line for text in documents(30) for line in (text, "second line")]


def test_parquet_and_hub_keep_bad_bytes_apart_and_go_on_from_a_position(make_card, tmp_path):
    good = [text.encode() for text in documents(600)]
    column = pyarrow.array([*good, b"a\xff", None, b" "], type=pyarrow.binary()).view(pyarrow.string())
    for folder in ("odd [1]", "hub"):
        (tmp_path / folder).mkdir()
        table = pyarrow.table({"body": column, "n": list(range(603))})
        pyarrow.parquet.write_table(table, tmp_path / folder / "d.parquet", row_group_size=100)
    for source in (
        {"kind": "parquet", "files": "odd [1]/d.parquet"},
        {"kind": "hub", "dataset": str(tmp_path / "hub"), "revision": "main"},
    ):
        card = make_card([], source=source, text_column="body")
        begun = reader(card)
        first = next(iter(begun))
        rest, skipped = read(reader(card, begun.position()))
        assert [*first, *rest] == documents(600)
        assert skipped == {"not UTF-8": 1, "text is null": 1, "empty": 1}
        assert begun.position()["read"] == len(first)
        with pytest.raises(UserError, match=r"text_column is 'text', but the documents have only body, n"):
            read(reader(make_card([], source=source)))


def test_a_reader_goes_on_after_any_document(make_card):
    card = make_card(with_bad_lines())
    found, _ = read(reader(card))
    for first, rest in ((0, 40), (17, 23), (25, 20), (49, 0)):
        assert read(reader(card, {"read": first, "dataset": None}))[0] == found[len(found) - rest :]


def test_bad_documents_are_counted_or_refused_by_number(make_card, tmp_path):
    manifest = run(make_card(with_bad_lines()), tmp_path / "out")
    assert manifest.documents == 40
    assert manifest.skipped == {**dict.fromkeys(sorted(BAD), 1), "not UTF-8": 2}
    lines = jsonl(documents(400)).splitlines()
    for reason, line in BAD.items():
        card = make_card(b"\n".join([*lines[:300], line, *lines[300:]]), on_bad_document="refuse")
        message = rf"document 300 \(counted from 0\) is bad: {reason}\. .*on_bad_document: skip"
        with pytest.raises(UserError, match=message):
            run(card, tmp_path / reason)


def test_nul_is_bad_for_bytes_only(make_card, tmp_path):
    card = make_card([*documents(30), "a\0b"])
    assert run(card, tmp_path / "bytes").skipped == {"NUL character": 1}
    assert run(card, tmp_path / "gpt2", tokenizer="gpt2").skipped == {}


def test_memory_does_not_grow_with_the_source(make_card):
    def peak(n):
        card = make_card(jsonl(["word " * 200] * n))
        tracemalloc.start()
        for _ in reader(card):
            pass
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    assert peak(8000) < 1.5 * peak(2000)


def test_a_hub_revision_is_pinned_to_a_commit(make_card, monkeypatch):
    class Api:
        def dataset_info(self, name, revision):
            if revision != "main":
                raise OSError("no such revision")
            return type("Info", (), {"sha": "a" * 40})

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    hub = {"kind": "hub", "dataset": "owner/name"}
    for revision, commit in (("main", "a" * 40), ("b" * 40, "b" * 40)):
        card = make_card([], source={**hub, "revision": revision})
        card.pin()
        assert card.provenance()["revision"] == commit
    with pytest.raises(UserError, match=r"commit of revision 'v9' of owner/name: no such revision"):
        make_card([], source={**hub, "revision": "v9"}).pin()


@pytest.mark.parametrize(
    ("text", "sections", "pieces"),
    [
        (
            "front\nCHAPTER I\none\nchapter\nCHAPTER II\ntwo",
            Sections(pattern="^CHAPTER"),
            ["front\n", "CHAPTER I\none\nchapter\n", "CHAPTER II\ntwo"],
        ),
        ("CHAPTER I\none", Sections(pattern="^CHAPTER"), ["CHAPTER I\none"]),  # no empty first section
        ("aa bb\n\ncc\ndd", Sections(max_characters=9), ["aa bb\n\n", "cc\ndd"]),  # after paragraphs,
        ("aa\n\nbb\ncc dd", Sections(max_characters=9), ["aa\n\n", "bb\ncc dd"]),
        ("aa bb\ncc dd", Sections(max_characters=9), ["aa bb\n", "cc dd"]),  # lines,
        ("aaaa bbbb", Sections(max_characters=6), ["aaaa ", "bbbb"]),  # words,
        ("abcdefgh", Sections(max_characters=3), ["abc", "def", "gh"]),  # anywhere
    ],
)
def test_where_documents_are_cut(text, sections, pieces):
    assert cut(text, sections) == pieces


def test_cutting_loses_nothing():
    rng = random.Random(0)
    text = "".join(rng.choice("ab \n") for _ in range(500)) + "x"
    for longest in (1, 2, 7, 40):
        pieces = cut(text, Sections(max_characters=longest, pattern="^b"))
        assert all(len(piece) <= longest + 1 and piece.strip() for piece in pieces)  # + the second half of a blank line
        assert "".join("".join(pieces).split()) == "".join(text.split())


def test_the_split_is_a_function_of_text_and_seed():
    texts = documents(2000)
    chosen = [is_validation(text, Validation(0.1, seed=3)) for text in texts]
    assert 150 < sum(chosen) < 250
    assert chosen == [is_validation(text, Validation(0.1, seed=3)) for text in texts]
    assert chosen != [is_validation(text, Validation(0.1, seed=4)) for text in texts]
    # A larger fraction keeps what a smaller one chose.
    assert all(is_validation(text, Validation(0.2, seed=3)) for text, c in zip(texts, chosen, strict=True) if c)
