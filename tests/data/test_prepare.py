import bz2
import gzip
import json
import lzma
import os
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from mup_lightning.data import prepare as prepare_module
from mup_lightning.data.card import Validation, load_card
from mup_lightning.data.prepare import prepare
from mup_lightning.data.sections import is_validation
from mup_lightning.data.shards import Manifest
from mup_lightning.data.shards_old import TokenStore
from mup_lightning.data.source import resolve_revision
from mup_lightning.errors import UserError

from .conftest import BAD, contents, documents, run, texts_of, with_bad_lines


def zst(data):
    return pyarrow.Codec("zstd").compress(data, asbytes=True)


@pytest.mark.parametrize("tokenizer", ["bytes", "gpt2"])
def test_text_in_text_out(make_card, tmp_path, tokenizer):
    texts = [*documents(60), "naïve £5 — 東京 🙂", "two\nlines\r\nand a\ttab"]
    card = make_card(texts)
    manifest = run(card, tmp_path / "out", tokenizer=tokenizer)
    expected = {"train": [], "val": []}
    for text in texts:
        expected["val" if is_validation(text, card.validation) else "train"].append(text)
    assert texts_of(tmp_path / "out", "train") == expected["train"]
    assert texts_of(tmp_path / "out", "val") == expected["val"]
    assert manifest == Manifest.load(tmp_path / "out")
    assert (manifest.documents, manifest.skipped) == (62, {})
    assert manifest.splits["train"].documents + manifest.splits["val"].documents == 62
    assert sorted(contents(tmp_path / "out")) == ["manifest.json", "train-00000.bin", "val-00000.bin"]


@pytest.mark.parametrize(
    ("ending", "pack"),
    [("", bytes), (".xz", lzma.compress), (".gz", gzip.compress), (".bz2", bz2.compress), (".zst", zst)],
)
def test_compressed_files_keep_every_byte(make_card, tmp_path, ending, pack):
    lines = [json.dumps({"text": f"£ {t} ü"}, ensure_ascii=False).encode() for t in documents(40)]
    card = make_card(
        pack(b"\n".join([*lines, b'{"text": "\xff"}'])),
        file=f"d.jsonl{ending}",
        source={"kind": "jsonl", "files": f"d.jsonl{ending}"},
    )
    manifest = run(card, tmp_path / "out")
    assert manifest.skipped == {"not UTF-8": 1}
    assert sorted(texts_of(tmp_path / "out", "train") + texts_of(tmp_path / "out", "val")) == sorted(
        f"£ {t} ü" for t in documents(40)
    )


def test_a_truncated_compressed_file_is_refused(make_card, tmp_path):
    for ending, pack in ((".xz", lzma.compress), (".gz", gzip.compress), (".zst", zst)):
        data = pack("".join(json.dumps({"text": t}) + "\n" for t in documents(300)).encode())
        name = f"d.jsonl{ending}"
        card = make_card(data[: len(data) // 2], file=name, source={"kind": "jsonl", "files": name})
        with pytest.raises(UserError, match=rf"reading .*d\.jsonl\{ending} failed after document \d+: .*whole"):
            run(card, tmp_path / f"out{ending}")
        assert not (tmp_path / f"out{ending}" / "manifest.json").exists()


def test_text_files_by_file_and_by_line(make_card, tmp_path):
    for i, text in enumerate(documents(30)):
        (tmp_path / f"t{i:02d}.txt").write_bytes(f"{text}\r\nsecond line\n".encode())
    card = make_card([], source={"kind": "text", "files": "t*.txt"})
    assert run(card, tmp_path / "files").documents == 30
    assert all(text.endswith("\nsecond line\n") and "\r" not in text for text in texts_of(tmp_path / "files", "train"))
    card = make_card([], source={"kind": "text", "files": "t*.txt", "document": "line"})
    assert run(card, tmp_path / "lines").documents == 60
    lines = {*texts_of(tmp_path / "lines", "train"), *texts_of(tmp_path / "lines", "val")}
    assert lines == {"second line", *documents(30)}


def parquet_with_bad_bytes(path):
    good = [t.encode() for t in documents(30)]
    column = pyarrow.array([*good, b"a\xff", None, b" "], type=pyarrow.binary()).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"body": column, "n": list(range(33))}), path, row_group_size=10)


def test_parquet_and_a_folder_of_the_hub_kind(make_card, tmp_path):
    odd = tmp_path / "odd [1]"
    odd.mkdir()
    parquet_with_bad_bytes(odd / "d.parquet")
    card = make_card([], source={"kind": "parquet", "files": "odd [1]/d.parquet"}, text_column="body")
    manifest = run(card, tmp_path / "out")
    assert manifest.documents == 30
    assert manifest.skipped == {"not UTF-8": 1, "text is null": 1, "empty": 1}
    hub = tmp_path / "hub"
    hub.mkdir()
    parquet_with_bad_bytes(hub / "d.parquet")
    card = make_card([], source={"kind": "hub", "dataset": str(hub), "revision": "main"}, text_column="body")
    assert run(card, tmp_path / "out2").splits == manifest.splits
    for source in (
        {"kind": "parquet", "files": "hub/d.parquet"},
        {"kind": "hub", "dataset": str(hub), "revision": "x"},
    ):
        with pytest.raises(UserError, match=r"text_column is 'text', but .* only body, n"):
            run(make_card([], source=source), tmp_path / "out3")


def test_bad_documents_are_counted(make_card, tmp_path):
    manifest = run(make_card(with_bad_lines()), tmp_path / "out")
    assert manifest.documents == 40
    assert manifest.skipped == {**dict.fromkeys(sorted(BAD), 1), "not UTF-8": 2}


@pytest.mark.parametrize("reason", BAD)
def test_bad_documents_are_refused_by_number(make_card, tmp_path, reason):
    lines = [json.dumps({"text": t}).encode() for t in documents(10)]
    card = make_card(b"\n".join([*lines[:7], BAD[reason], *lines[7:]]), on_bad_document="refuse")
    with pytest.raises(UserError, match=rf"document 7 \(counted from 0\) is bad: {reason}\. .*on_bad_document: skip"):
        run(card, tmp_path / "out")


def test_documents_are_numbered_across_batches(make_card, tmp_path):
    texts = documents(400)
    card = make_card([*texts[:300], "", *texts[300:]], on_bad_document="refuse")
    with pytest.raises(UserError, match="document 300 "):
        run(card, tmp_path / "out")


def test_nul_is_bad_for_bytes_only(make_card, tmp_path):
    card = make_card([*documents(30), "a\0b"])
    assert run(card, tmp_path / "bytes").skipped == {"NUL character": 1}
    assert run(card, tmp_path / "gpt2", tokenizer="gpt2").skipped == {}


def test_a_wrong_column_and_nothing_usable(make_card, tmp_path):
    with pytest.raises(UserError, match=r"text_column is 'body', but the documents have only text"):
        run(make_card(documents(3), text_column="body"), tmp_path / "out")
    with pytest.raises(UserError, match=r"no usable document among the 2 read \(skipped: 2 empty\)"):
        run(make_card(["", " "]), tmp_path / "out")
    with pytest.raises(UserError, match="no usable document among the 0 read"):
        run(make_card(b""), tmp_path / "out")


def test_an_empty_split_is_refused(make_card, tmp_path):
    with pytest.raises(UserError, match=r"the val split is empty: all 5 .*Raise the fraction"):
        run(make_card(documents(5), validation={"fraction": 1e-9}), tmp_path / "out")
    with pytest.raises(UserError, match=r"the train split is empty: all 5 .*Lower the fraction"):
        run(make_card(documents(5), validation={"fraction": 0.999999}), tmp_path / "out")


def test_adding_documents_moves_no_other(make_card, tmp_path):
    texts = documents(80)
    run(make_card(texts[20:]), tmp_path / "few")
    run(make_card(texts), tmp_path / "many")
    for split in ("train", "val"):
        assert set(texts_of(tmp_path / "few", split)) == set(texts_of(tmp_path / "many", split)) & set(texts[20:])


def test_sections_are_split_one_by_one(make_card, tmp_path):
    novel = "".join(f"CHAPTER {i}\nwords of {i}\n\n" for i in range(50))
    manifest = run(make_card([novel], sections={"pattern": "^CHAPTER"}), tmp_path / "out")
    assert (manifest.documents, sum(s.documents for s in manifest.splits.values())) == (1, 50)
    assert all(text.startswith("CHAPTER") for text in texts_of(tmp_path / "out", "val"))


def test_a_finished_corpus_is_left_alone(make_card, tmp_path, monkeypatch):
    card = make_card(documents(40))
    first = run(card, tmp_path / "out")
    before = contents(tmp_path / "out")
    monkeypatch.setattr(prepare_module, "DocumentReader", None)  # must not be needed
    assert run(card, tmp_path / "out") == first
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"already holds the finished corpus 'small' \(bytes\).*--force"):
        run(card, tmp_path / "out", tokenizer="gpt2")
    other = make_card(documents(41))
    with pytest.raises(UserError, match="--force"):
        run(other, tmp_path / "out")
    assert contents(tmp_path / "out") == before
    assert run(other, tmp_path / "out", force=True).documents == 41
    TokenStore.open(tmp_path / "out", "train")


def test_the_rules_of_the_card_are_part_of_the_source(make_card, tmp_path):
    run(make_card(documents(40)), tmp_path / "out")
    for changes in ({"validation": {"fraction": 0.2, "seed": 2}}, {"sections": {"max_characters": 50}}):
        with pytest.raises(UserError, match="of another source"):
            run(make_card(documents(40), **changes), tmp_path / "out")
    run(make_card(documents(40), licence="another", description="more"), tmp_path / "out")


def test_two_at_once_are_refused(make_card, tmp_path):
    with prepare_module._working_in(tmp_path / "out"), pytest.raises(UserError, match="another process is preparing"):
        run(make_card(documents(30)), tmp_path / "out")


def test_a_folder_that_cannot_be_made(make_card, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to"):
        run(make_card(documents(30)), tmp_path / "file" / "out")


def test_a_hub_revision_is_pinned_to_a_commit(make_card, monkeypatch):
    import huggingface_hub

    class Api:
        def dataset_info(self, name, revision):
            if revision != "main":
                raise OSError("no such revision")
            return type("Info", (), {"sha": "a" * 40})

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    hub = {"kind": "hub", "dataset": "owner/name"}
    assert resolve_revision(make_card([], source={**hub, "revision": "main"})) == "a" * 40
    assert resolve_revision(make_card([], source={**hub, "revision": "b" * 40})) == "b" * 40
    with pytest.raises(UserError, match=r"cannot ask the hub for revision 'v9' of owner/name: no such revision"):
        resolve_revision(make_card([], source={**hub, "revision": "v9"}))


def test_no_cache_is_left_behind(make_card, tmp_path):
    card = make_card(documents(30))
    environment = {**os.environ, "HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "tmp"), "HF_HOME": ""}
    environment.pop("HF_HOME")
    for folder in ("home", "tmp"):
        (tmp_path / folder).mkdir()
    code = (
        "from mup_lightning.data.prepare import prepare\n"
        f"prepare({str(card.path)!r}, {str(tmp_path / 'out')!r}, 'gpt2', progress=False)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert list((tmp_path / "home").iterdir()) == []
    assert list((tmp_path / "tmp").iterdir()) == []


def test_the_shipped_corpus(tmp_path):
    card = load_card(Path(__file__).parents[2] / "data" / "austen.yaml")
    assert card.validation == Validation(0.05, 0)
    manifest = prepare(card, tmp_path / "out", progress=False)
    assert (manifest.documents, manifest.skipped) == (6, {})
    assert manifest.splits["train"].tokens == 949_556
    assert manifest.splits["val"].tokens == 43_806
    assert manifest.unigram_loss == pytest.approx(6.4983, abs=1e-4)
