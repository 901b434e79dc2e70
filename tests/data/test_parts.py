"""Corpora of the layouts that OpenWebText, FineWeb-Edu and C4 have, whole and in parts; copies of documents."""

import gzip
import random
import subprocess
import sys
from functools import partial

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from mup_lightning.cli.main import main
from mup_lightning.data.duplicates import Seen, hashes_of
from mup_lightning.data.parts import join, part_of
from mup_lightning.data.prepare import Making
from mup_lightning.data.shards import SplitWriter
from mup_lightning.errors import UserError

from .conftest import contents, documents, jsonl, run, texts_of
from .test_documents import zst
from .test_prepare import interrupted, with_copies


def written(folder, layout, texts, files=5):
    """The source of a card, of several files whose names sort as they are read, as a hub's or a mirror's."""
    folder.mkdir(parents=True, exist_ok=True)
    size = -(-len(texts) // files)
    for number in range(files):
        own = texts[number * size : (number + 1) * size]
        name = folder / f"c4-train.{number:05d}-of-{files:05d}"
        if layout in ("parquet", "hub"):
            table = pyarrow.table({"text": own, "url": [str(i) for i in range(len(own))]})
            pyarrow.parquet.write_table(table, f"{name}.parquet", row_group_size=37)
        elif layout.endswith("json.gz"):
            name.with_name(f"{name.name}.json.gz").write_bytes(gzip.compress(jsonl(own)))
        else:
            name.with_name(f"{name.name}.jsonl.zst").write_bytes(zst(jsonl(own)))
    if layout.startswith("hub"):
        return {"kind": "hub", "dataset": str(folder), "revision": "main"}
    return {"kind": "parquet" if layout == "parquet" else "jsonl", "files": f"{folder.name}/*.{layout}"}


CUT = {"max_characters": 60}


@pytest.mark.parametrize(
    ("layout", "of", "deduplicate"),
    [
        ("jsonl.zst", 3, True),
        ("json.gz", 5, False),
        ("parquet", 4, False),
        ("parquet", 9, True),
        ("hub", 2, True),
        ("hub json.gz", 3, False),
    ],
)
def test_parts_make_the_same_corpus(make_card, tmp_path, layout, of, deduplicate):
    """Bit for bit, manifest and record included, wherever shards begin and copies lie."""
    texts = with_copies()
    source = written(tmp_path / "source", layout, texts)
    card = make_card([], source=source, deduplicate=deduplicate, sections=CUT)
    whole = run(card, tmp_path / "whole", shard_tokens=9_000)
    assert len(contents(tmp_path / "whole")) > 5
    out = tmp_path / "out"
    for number in range(of, 0, -1):
        run(card, part_of(out, (number, of)), share=(number, of), shard_tokens=5_000)
    assert join(card, out, of, "bytes", shard_tokens=9_000) == whole
    assert contents(out) == contents(tmp_path / "whole")
    assert join(card, out, of, "bytes") == whole
    copies = len(texts) - 1 - len(set(texts) - {""})
    assert whole.skipped == {"empty": 1} | ({"duplicate": copies} if deduplicate else {})
    assert whole.documents == len(texts) - 1 - copies * deduplicate
    if deduplicate:
        kept = "".join(sorted("".join(texts_of(tmp_path / "whole", split)) for split in ("train", "val")))
        assert len(kept) == sum(len(text) for text in set(texts))
        assert sum(split.text_bytes for split in whole.splits.values()) == len(kept)


def test_processes_of_this_machine(make_card, tmp_path, capsys):
    source = written(tmp_path / "source", "jsonl.zst", with_copies())
    card = make_card([], source=source, deduplicate=True)
    words = ["data", "prepare", str(card.path), "--tokenizer", "bytes"]
    assert main([*words, "--out", str(tmp_path / "one")]) == 0
    assert main([*words, "--out", str(tmp_path / "two"), "--processes", "2"]) == 0
    assert "MB/s" in capsys.readouterr().out
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    for number in ("1", "2"):
        assert main([*words, "--out", str(tmp_path / "three"), "--shard", f"{number}/2"]) == 0
    assert main([*words, "--out", str(tmp_path / "three"), "--join", "2"]) == 0
    assert contents(tmp_path / "three") == contents(tmp_path / "one")
    assert main([*words, "--shard", "1/2", "--join", "2"]) == 1
    assert main([*words, "--shard", "3/2"]) == 1
    assert "expected I/N with I from 1 to N" in capsys.readouterr().err


@pytest.mark.parametrize(("owner", "name", "at"), [(SplitWriter, "append", 300), (Making, "finish", 1)])
def test_a_join_that_was_killed_begins_anew(make_card, tmp_path, monkeypatch, owner, name, at):
    card = make_card([], source=written(tmp_path / "source", "jsonl.zst", with_copies()), deduplicate=True)
    run(card, tmp_path / "whole", shard_tokens=9_000)
    out = tmp_path / "out"
    for number in (1, 2):
        run(card, part_of(out, (number, 2)), share=(number, 2))
    again = partial(join, card, out, 2, "bytes", 9_000)
    interrupted(monkeypatch, again, owner, name, at, before=True)
    again()
    assert contents(out) == contents(tmp_path / "whole")


def test_parts_that_do_not_fit(make_card, tmp_path):
    source = written(tmp_path / "source", "jsonl.zst", documents(100))
    card, out = make_card([], source=source), tmp_path / "out"
    with pytest.raises(UserError, match=r"has 5 files or row groups; expected at most as many shares, not 6"):
        run(card, out, share=(1, 6))
    run(card, part_of(out, (1, 2)), share=(1, 2))
    with pytest.raises(UserError, match=r"part 2 of 2 is not finished: no .*; run it: --shard 2/2"):
        join(card, out, 2, "bytes")
    run(card, part_of(out, (2, 2)), share=(2, 2))
    with pytest.raises(UserError, match="of another source, card or tokenizer"):
        join(card, out, 2, "gpt2")
    (tmp_path / "source" / "c4-train.00004-of-00005.jsonl.zst").write_bytes(zst(jsonl(documents(7))))
    with pytest.raises(UserError, match=r"1 changed \(source/c4-train\.00004"):
        join(card, out, 2, "bytes")


def test_what_was_seen_before_is_known():
    """Against a set, in batches of every size; 8 bytes a document."""
    chance, seen, known = random.Random(1), Seen(np.empty(0, "<u8")), set()
    for size in (1, 7, 256, 1000, 3, 256, 256, 5000):
        texts = [str(chance.randrange(4000)) for _ in range(size)]
        expected = [text not in known and text not in texts[:i] for i, text in enumerate(texts)]
        assert seen.new(hashes_of(texts)).tolist() == expected
        known |= set(texts)
    assert sum(run.nbytes for run in seen._runs) == 8 * len(known)


PEAKS = """
import re, sys
from pathlib import Path
from mup_lightning.data.card import load_card
from mup_lightning.data.prepare import prepare
for out in ("small", "large"):
    prepare(load_card(f"{out}/card.yaml"), Path(out), "bytes", progress=False)
    print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


def test_memory_does_not_grow_with_the_text(make_card, tmp_path):
    text = " ".join(documents(1, 400))
    for name, megabytes in (("small", 8), ("large", 32)):  # the first few are what buffers hold
        lines = jsonl([f"{i} {text}" for i in range(megabytes * 1_000_000 // len(text))])
        make_card(lines, file=f"{name}/docs.jsonl", source={"kind": "jsonl", "files": "docs.jsonl"})
        (tmp_path / "card.yaml").rename(tmp_path / name / "card.yaml")
    done = subprocess.run([sys.executable, "-c", PEAKS], cwd=tmp_path, capture_output=True, text=True)
    small, large = map(int, done.stdout.split())
    assert large < 1.1 * small
