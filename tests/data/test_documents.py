"""Reading, cutting and splitting documents."""

import bz2
import gzip
import json
import lzma
import random

import huggingface_hub
import pyarrow
import pyarrow.compute
import pyarrow.parquet
import pytest

from mup_lightning.data import documents as documents_module
from mup_lightning.data.card import Sections, Validation, cut, is_validation
from mup_lightning.data.documents import START, DocumentReader, _as_bytes
from mup_lightning.data.shards import Manifest
from mup_lightning.errors import UserError

from .conftest import BAD, documents, jsonl, run, with_bad_lines


def zst(data):
    return pyarrow.Codec("zstd").compress(data, asbytes=True)


PACKED = {"": bytes, ".xz": lzma.compress, ".gz": gzip.compress, ".bz2": bz2.compress, ".zst": zst}


def reader(card, position=START):
    return DocumentReader(card, lambda text: None, Manifest.begin("any", "bytes"), position)


def read(documents):
    """The usable texts, and how many were left out for which reason."""
    return [text for batch in documents for text in batch], documents.manifest.skipped


@pytest.mark.parametrize("ending", PACKED)
def test_compressed_files_keep_every_byte_and_are_refused_when_truncated(make_card, ending):
    name = f"d.jsonl{ending}"
    texts = [f"£ {text} ü" for text in documents(300)]
    data = PACKED[ending](jsonl(texts) + b'{"text": "\xff"}')
    assert read(reader(make_card(data, file=name))) == (texts, {"not UTF-8": 1})
    if ending:
        with pytest.raises(UserError, match=rf"reading .*d\.jsonl\{ending} failed after document \d+: .*whole"):
            read(reader(make_card(data[: len(data) // 2], file=name)))


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
        with pytest.raises(UserError, match=r"text_column is 'text', but the documents.* have only body, n"):
            read(reader(make_card([], source=source)))


TYPES = {
    "null": lambda texts: pyarrow.nulls(len(texts)),
    "string": pyarrow.array,
    "large_string": lambda texts: pyarrow.array(texts, pyarrow.large_string()),
    "string_view": lambda texts: pyarrow.array(texts, pyarrow.string_view()),
    "dictionary": lambda texts: pyarrow.array(texts).dictionary_encode(),
    "large_dictionary": lambda texts: pyarrow.array(texts, pyarrow.large_string()).dictionary_encode(),
    "binary": lambda texts: pyarrow.array(texts, pyarrow.binary()),
    "extension": lambda texts: pyarrow.array(texts, pyarrow.json_()),
}


def test_parquet_of_every_type_of_string_whichever_comes_first(make_card, tmp_path):
    texts = documents(300)
    for i, make in enumerate(TYPES.values()):
        table = pyarrow.table({"text": make(texts), "text.more": ["x"] * 300})
        pyarrow.parquet.write_table(table, tmp_path / f"{i}.parquet", row_group_size=70)
    card = make_card([], source={"kind": "parquet", "files": "*.parquet"})
    found, skipped = read(reader(card))
    assert (found, skipped) == (texts * (len(TYPES) - 1), {"text is null": 300})
    for begin in (299, 300, 555, 601, len(TYPES) * 300):
        assert read(reader(card, {"read": begin, "dataset": None}))[0] == found[max(0, begin - 300) :]
    for array in (pyarrow.array(texts, pyarrow.string_view()), pyarrow.compute.run_end_encode(pyarrow.array(texts))):
        assert _as_bytes(array).to_pylist() == [text.encode() for text in texts]  # which parquet stores otherwise
    with (tmp_path / "4.parquet").open("r+b") as file:
        file.seek(300)
        file.write(bytes(2000))
    with pytest.raises(UserError, match=r"reading .*/4\.parquet failed after document 12\d\d: "):
        read(reader(card))
    card.on_bad_document = "refuse"
    with pytest.raises(UserError, match=r"/0\.parquet, row 1 is bad: text is null"):
        read(reader(card))
    (tmp_path / "hub").mkdir()
    for i in (0, 1):
        (tmp_path / f"{i}.parquet").rename(tmp_path / "hub" / f"{i}.parquet")
    card = make_card([], source={"kind": "hub", "dataset": str(tmp_path / "hub"), "revision": "main"})
    assert len(read(reader(card))[0]) == 300


def test_what_a_file_looks_like_is_said(make_card):
    lines = jsonl(documents(30))
    array = json.dumps([json.loads(line) for line in lines.splitlines()], indent=1)
    parquet = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table({"text": ["x"]}), parquet)
    for content, look in (
        *((PACKED[ending](lines), rf"data; rename it to d\.jsonl\{ending}, ") for ending in PACKED if ending),
        (lines.decode().encode("utf-16"), "UTF-16; make it UTF-8: iconv -f UTF-16 -t UTF-8 d.jsonl"),
        (lines.decode().encode("utf-16-le"), "UTF-16"),
        (lines.decode().encode("utf-32"), "UTF-32; make it UTF-8: iconv -f UTF-32"),
        (array.encode(), r"a JSON array; make it one object a line: jq -c '\.\[\]' d\.jsonl"),
        (b"\xef\xbb\xbf[" + b",".join(lines.splitlines()) + b"]", "a JSON array"),
        (b"\n[\n" + b",\n".join(lines.splitlines()) + b"\n]\n", "a JSON array"),
        (json.dumps({"text": "x"}, indent=1).encode(), r"indented JSON; make it one object a line: jq -c \. d\.jsonl"),
        (parquet.getvalue().to_pybytes(), r"Parquet; set source\.kind: parquet"),
        (b"PK\3\4\x14", "a zip archive"),
    ):
        with pytest.raises(UserError, match=rf"/d\.jsonl, of kind jsonl, looks like .*{look}"):
            read(reader(make_card(content, file="d.jsonl")))
    text = {"kind": "text", "files": "d.txt"}
    assert read(reader(make_card(array.encode(), file="d.txt", source=text)))[0] == [array]
    with pytest.raises(UserError, match=r"/d\.txt, of kind text, looks like UTF-16"):
        read(reader(make_card("text".encode("utf-16"), file="d.txt", source=text)))


def test_bad_documents_are_counted_with_a_place_and_a_hint_or_refused(make_card, tmp_path, capsys):
    (tmp_path / "a.jsonl").write_bytes(jsonl(documents(5)))
    bad = [
        b'{"body": "x", "n": 1}',
        b"",
        '{"text": "caf\xe9"}'.encode("latin-1"),
        b'{"text": "\xc3\xa9 \xff"}',
        b"{",
        b"{",
    ]
    source = {"kind": "jsonl", "files": ["docs.jsonl", "a.jsonl"]}
    card = make_card(b"\n".join([*bad, jsonl(documents(5))]), source=source)
    assert read(reader(card))[1] == {"no text": 1, "blank line": 1, "not UTF-8": 2, "not JSON": 2}
    place = f"note: {tmp_path}/docs.jsonl, line"
    assert capsys.readouterr().err.splitlines() == [
        f"{place} 1 is bad: no text (only body, n); such documents are left out and counted",
        f"{place} 3 is bad: not UTF-8 (it looks like Latin-1 or Windows-1252; expected UTF-8, as from iconv -f "
        "WINDOWS-1252 -t UTF-8); such documents are left out and counted",
        f"{place} 5 is bad: not JSON; such documents are left out and counted",
    ]
    manifest = run(make_card(with_bad_lines()), tmp_path / "out")
    assert manifest.documents == 40
    assert manifest.skipped == {**dict.fromkeys(sorted(BAD), 1), "not UTF-8": 2}
    lines = jsonl(documents(400)).splitlines()
    for reason, line in BAD.items():
        card = make_card(b"\n".join([*lines[:300], line, *lines[300:]]), on_bad_document="refuse")
        message = rf"docs\.jsonl, line 301 is bad: {reason}(\. | \().*Correct it, or set on_bad_document: skip"
        with pytest.raises(UserError, match=message):
            read(reader(card))
    card = make_card(b"\xff", file="d.txt", source={"kind": "text", "files": "d.txt"}, on_bad_document="refuse")
    with pytest.raises(UserError, match=r"d\.txt is bad: not UTF-8"):
        read(reader(card))


def test_a_card_whose_column_no_document_has_is_refused_early(make_card, monkeypatch):
    monkeypatch.setattr(documents_module, "TRIED", 600)
    card = make_card(jsonl(documents(1000)), text_column="body")
    tried = reader(card)
    with pytest.raises(UserError, match=r"text_column is 'body', but the documents have only text"):
        read(tried)
    assert tried.read < 1000


def test_a_reader_goes_on_after_any_document(make_card):
    card = make_card(with_bad_lines())
    found, _ = read(reader(card))
    for first, rest in ((0, 40), (17, 23), (25, 20), (49, 0)):
        assert read(reader(card, {"read": first, "dataset": None}))[0] == found[len(found) - rest :]


def test_nul_is_bad_for_bytes_only(make_card, tmp_path):
    card = make_card([*documents(30), "a\0b"])
    assert run(card, tmp_path / "bytes").skipped == {"NUL character": 1}
    assert run(card, tmp_path / "gpt2", tokenizer="gpt2").skipped == {}


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
    chosen, again, other, larger = (
        [is_validation(text, Validation(fraction, seed)) for text in texts]
        for fraction, seed in ((0.1, 3), (0.1, 3), (0.1, 4), (0.2, 3))
    )
    assert 150 < sum(chosen) < 250
    assert other != chosen == again
    assert all(more or not one for one, more in zip(chosen, larger, strict=True))
