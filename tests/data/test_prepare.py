"""From a card to a corpus; killed anywhere and run again, to the same bytes as when it is left alone."""

import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from mup_lightning.data import prepare as prepare_module
from mup_lightning.data import sources as sources_module
from mup_lightning.data.card import Validation, is_validation, load_card
from mup_lightning.data.shards import Manifest, SplitWriter, TokenStore, manifest_hash
from mup_lightning.data.sources import note_changes
from mup_lightning.data.tokenizer import Tokenizer
from mup_lightning.errors import UserError

from .conftest import contents, documents, flip_a_bit, jsonl, run, texts_of, with_bad_lines, write_card

AUSTEN = {
    "gpt2": ("e33b0f6af07f0a88067a1b52a2602e454fe8151bad4ddc758b82626e9bbcedf8", 949_556, 43_806, 6.4983),
    "bytes": ("f78291dda7092dd4b4d1d25b2893773404992614eb4283be5d1378aab0dae934", 3_847_503, 177_795, 3.0865),
}


@pytest.mark.parametrize("tokenizer", AUSTEN)
def test_the_shipped_corpus_never_changes(tmp_path, tokenizer):
    card = load_card(Path(__file__).parents[2] / "data" / "austen.yaml")
    manifest = run(card, tmp_path / "out", tokenizer=tokenizer)
    tokens = [manifest.splits[split].tokens for split in ("train", "val")]
    corpus_hash, *expected, loss = AUSTEN[tokenizer]
    assert (manifest_hash(manifest), tokens) == (corpus_hash, expected)
    assert (manifest.documents, manifest.skipped) == (6, {})
    assert manifest.unigram_loss == pytest.approx(loss, abs=1e-4)


@pytest.mark.parametrize("tokenizer", ["bytes", "gpt2"])
def test_text_in_text_out(make_card, tmp_path, tokenizer):
    texts = [*documents(60), "naïve £5 — 東京 🙂", "two\nlines\r\nand a\ttab"]
    card = make_card(texts)
    manifest = run(card, tmp_path / "out", tokenizer=tokenizer)
    for split in ("train", "val"):
        expected = [text for text in texts if is_validation(text, card.validation) == (split == "val")]
        assert texts_of(tmp_path / "out", split) == expected
        assert manifest.splits[split].documents == len(expected)
    assert manifest == Manifest.load(tmp_path / "out")
    assert sorted(contents(tmp_path / "out")) == [
        *("manifest.json", "sources.json", "train-00000.bin", "val-00000.bin")
    ]


def test_a_source_without_two_splits_is_refused(make_card, tmp_path):
    for content, keys, message in (
        (["", " "], {}, r"split train or val in 0 usable documents \(skipped: 2 empty\)"),
        (b"", {}, r"split train or val in 0 usable documents \(skipped: none\)\. Check source"),
        (documents(5), {"validation": {"fraction": 1e-9}}, r"split val in 5 .* validation\.fraction \(1e-09\)"),
        (documents(5), {"validation": {"fraction": 0.999999}}, "split train in 5 usable documents"),
        (documents(3), {"text_column": "body"}, "text_column is 'body', but the documents have only text"),
    ):
        with pytest.raises(UserError, match=message):
            run(make_card(content, **keys), tmp_path / "out")


def test_a_finished_corpus_is_left_alone(make_card, tmp_path, monkeypatch):
    card, out = make_card(documents(40)), tmp_path / "out"
    first = run(card, out)
    before = contents(out)
    with monkeypatch.context() as patch:
        for owner, name in (
            (prepare_module, "DocumentReader"),
            (sources_module, "file_sha256"),
            (Tokenizer, "encode_batch"),
        ):
            patch.setattr(owner, name, None)  # must not be needed
        assert run(card, out) == first
    assert run(make_card(documents(40), licence="another", description="more"), out) == first
    with pytest.raises(UserError, match=r"already holds the corpus 'small' \(bytes\).*--force"):
        run(card, out, tokenizer="gpt2")
    for changes in ({"validation": {"fraction": 0.2, "seed": 2}}, {"sections": {"max_characters": 50}}):
        with pytest.raises(UserError, match="of another source"):
            run(make_card(documents(40), **changes), out)
    assert contents(out) == before
    assert run(make_card(documents(41)), out, force=True).documents == 41
    TokenStore.open(out, "train")


def edit(old, new):
    def act(folder):
        text = (folder / "card.yaml").read_text()
        assert old in text
        (folder / "card.yaml").write_text(text.replace(old, new))

    return act


CHANGES = {
    "a new file": (lambda folder: (folder / "mine/b.jsonl").write_bytes(jsonl(["x"])), "1 new (mine/b.jsonl)"),
    "a longer one": (lambda folder: (folder / "mine/a.jsonl").write_bytes(jsonl(documents(41))), "1 changed (mine/a."),
    "another of its size": (lambda folder: flip_a_bit(folder / "mine/a.jsonl", 15), "1 changed (mine/a.jsonl)"),
    "one is gone": (lambda folder: (folder / "mine/c.jsonl").unlink(), "1 gone (mine/c.jsonl)"),
    "another card": (edit("fraction: 0.2", "fraction: 0.3"), "the card has changed"),
    "a broken card": (edit("licence:", "license:"), "did you mean licence?"),
    "a new time": (lambda folder: os.utime(folder / "mine/a.jsonl"), ""),
    "other words": (edit("licence: none", "licence: MIT"), ""),
    "no files": (lambda folder: shutil.rmtree(folder / "mine"), ""),
    "no card": (lambda folder: (folder / "card.yaml").unlink(), ""),
    "an earlier version": (
        lambda folder: [(folder / "mine/c.jsonl").unlink(), (folder / "out/sources.json").unlink()],
        "",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_stale_corpus_is_said(make_card, tmp_path, capsys, change):
    """Every verb that uses the corpus as it is notes the change; `prepare` makes it anew only with --force."""
    make_card(documents(40), file="mine/a.jsonl")
    card = make_card(documents(10), file="mine/c.jsonl", source={"kind": "jsonl", "files": "mine/*.jsonl"})
    out = tmp_path / "out"
    first = run(card, out)
    note_changes(out)
    assert capsys.readouterr().err == ""
    act, said = CHANGES[change]
    act(tmp_path)
    note_changes(out)
    error = capsys.readouterr().err
    assert said in error
    assert bool(error) == bool(said)
    if not said and change not in ("no files", "an earlier version"):
        assert run(card, out) == first
    elif change != "no files":
        with pytest.raises(UserError, match=re.escape(said) if said else "of another source"):
            run(load_card(card.path), out)
        assert Manifest.load(out) == first
    if said and change != "a broken card":
        run(load_card(card.path), out, force=True)
        note_changes(out)
        assert capsys.readouterr().err == ""


def test_a_record_serves_a_moved_folder_and_its_own_manifest_alone(make_card, tmp_path, capsys):
    (tmp_path / "old").mkdir()
    card = make_card(documents(40))
    run(card, tmp_path / "old" / "out")
    shutil.copytree(tmp_path, tmp_path.with_name("moved"))
    (tmp_path.with_name("moved") / "docs.jsonl").write_bytes(jsonl(documents(41)))
    note_changes(tmp_path.with_name("moved") / "old" / "out")
    assert "1 changed (docs.jsonl)" in capsys.readouterr().err
    run(make_card(documents(42)), tmp_path / "other")
    shutil.copy(tmp_path / "other" / "manifest.json", tmp_path / "old" / "out")
    note_changes(tmp_path / "old" / "out")
    assert capsys.readouterr().err == ""
    (tmp_path / "other" / "sources.json").write_text("{")
    with pytest.raises(UserError, match=r"sources\.json is damaged"):
        note_changes(tmp_path / "other")


def test_a_source_that_may_not_be_read_is_taken_for_one_that_is_not_here(make_card, tmp_path, monkeypatch, capsys):
    card = make_card(documents(40))
    run(card, tmp_path / "out")
    (tmp_path / "docs.jsonl").write_bytes(jsonl(documents(41)))
    for name in ("load_card", "Card.input_files", "file_sha256"):
        with monkeypatch.context() as patch:
            patch.setattr(f"mup_lightning.data.sources.{name}", lambda *_: Path("/nowhere").read_bytes())
            note_changes(tmp_path / "out")
    assert capsys.readouterr().err.count("note:") == 1  # a file of another size is not read


def test_files_that_change_while_they_are_read_are_refused(make_card, tmp_path, monkeypatch):
    card = make_card(documents(40))
    original = prepare_module.unigram_loss
    with monkeypatch.context() as patch:
        flip = lambda *rest: (flip_a_bit(tmp_path / "docs.jsonl", 15), original(*rest))[1]  # noqa: E731
        patch.setattr(prepare_module, "unigram_loss", flip)
        with pytest.raises(UserError, match=r"files changed while they were read \(1 changed \(docs\.jsonl\)\)"):
            run(card, tmp_path / "out")
    run(card, tmp_path / "out")  # no shard was finished
    run(card, tmp_path / "anew")
    assert contents(tmp_path / "out") == contents(tmp_path / "anew")


def test_folders_that_cannot_be_used(make_card, tmp_path):
    with prepare_module.working_in(tmp_path / "out"), pytest.raises(UserError, match="is being written by process"):
        run(make_card(documents(30)), tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is not a folder"):
        run(make_card(documents(30)), tmp_path / "file" / "out")


class KilledError(BaseException):
    pass


def interrupted(monkeypatch, prepare, owner, name, at, before=False, error=KilledError):
    """Prepare until owner.name fails at its `at`-th call, before or after doing its work; return the error."""
    original, calls = getattr(owner, name), []

    def patched(*args, **kwargs):
        calls.append(name)
        result = None if before and len(calls) == at else original(*args, **kwargs)
        if len(calls) == at:
            raise error
        return result

    with monkeypatch.context() as context:
        context.setattr(owner, name, patched)
        with pytest.raises((KilledError, UserError)) as caught:
            prepare()
    return caught.value


def with_copies(n=500):
    """Texts of which many come again, near and far, and one that is empty."""
    texts = documents(n, 15)
    chance = random.Random(0)
    return [*texts[: n // 2], "", *chance.choices(texts, k=n // 2), *texts[n // 2 :], *chance.choices(texts, k=40)]


LONG = with_bad_lines() + jsonl(with_copies(900))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Whether copies are left out -> a card of LONG, and what its corpus holds that was never interrupted."""
    found = {}
    for deduplicate in (False, True):
        folder = tmp_path_factory.mktemp("whole")
        card = write_card(folder, LONG, deduplicate=deduplicate)
        run(card, folder / "out", shard_tokens=9_000)
        found[deduplicate] = card, contents(folder / "out")
        assert len(found[deduplicate][1]) > 5
    return found


@pytest.mark.parametrize(
    ("owner", "name", "at", "before", "deduplicate"),
    [
        (SplitWriter, "append", 1, True, False),  # before the first journal
        (SplitWriter, "append", 3, False, True),
        (SplitWriter, "append", 333, False, False),
        (SplitWriter, "append", 400, False, True),
        (SplitWriter, "append", 700, False, True),
        (SplitWriter, "close_shard", 3, False, False),  # a shard is whole, but no journal knows it
        (prepare_module, "write_json", 2, True, True),  # the journal
        (prepare_module, "write_json", 2, False, False),
        (prepare_module, "unigram_loss", 1, True, False),  # every shard is finished, the manifest is not
        (Manifest, "save", 1, False, True),
        (SplitWriter, "sync", 6, True, False),  # the disk is full
    ],
)
def test_killed_and_resumed_gives_the_same_bytes(monkeypatch, whole, owner, name, at, before, deduplicate):
    card, wanted = whole[deduplicate]
    broken = card.path.parent / f"{name}-{at}-{before}"
    error = OSError(errno.ENOSPC, "No space left on device") if name == "sync" else KilledError("killed")
    prepare = partial(run, card, broken, shard_tokens=9_000)
    said = str(interrupted(monkeypatch, prepare, owner, name, at, before, error))
    assert said == "killed" or re.search("No space left .* run the same command again", said)
    assert prepare() == Manifest.load(broken)
    assert contents(broken) == wanted


def test_resuming_does_not_start_again(make_card, tmp_path, monkeypatch):
    prepare = partial(run, make_card(documents(900, 15)), tmp_path / "out", shard_tokens=9_000)
    interrupted(monkeypatch, prepare, prepare_module, "write_json", 2)
    encoded = []
    original = Tokenizer.encode_batch
    monkeypatch.setattr(Tokenizer, "encode_batch", lambda s, t: encoded.extend(t) or original(s, t))
    prepare()
    assert 0 < len(encoded) < 700


KILL = """
import os, signal, sys
from pathlib import Path
from mup_lightning.data.card import load_card
from mup_lightning.data.prepare import SplitWriter, prepare
original, calls = SplitWriter.append, [0]
def patched(*args):
    original(*args)
    calls[0] += 1
    if calls[0] == 640: os.kill(os.getpid(), signal.SIGKILL)
SplitWriter.append = patched
prepare(load_card(sys.argv[1]), Path(sys.argv[2]), "bytes", 9000, progress=False)
"""


def test_sigkill_and_resume(whole):
    card, wanted = whole[False]
    broken = card.path.parent / "killed"
    done = subprocess.run([sys.executable, "-c", KILL, str(card.path), str(broken)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert "journal.json" in contents(broken)
    run(card, broken, shard_tokens=9_000)
    assert contents(broken) == wanted


def test_a_shard_begun_after_the_journal_is_begun_again(make_card, tmp_path, monkeypatch):
    texts = sorted(documents(900, 15), key=lambda text: is_validation(text, Validation(0.2, seed=1)))  # train first
    card = make_card(texts)
    run(card, tmp_path / "whole", shard_tokens=30_000)
    prepare = partial(run, card, tmp_path / "out", shard_tokens=30_000)
    interrupted(monkeypatch, prepare, SplitWriter, "append", 760)
    assert json.loads((tmp_path / "out" / "journal.json").read_text())["manifest"]["splits"]["val"]["tokens"] == 0
    assert (tmp_path / "out" / "val-00000.bin").exists()
    prepare()
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_an_unfinished_corpus_that_cannot_be_continued(make_card, tmp_path, monkeypatch):
    card, out = make_card(documents(900, 15)), tmp_path / "out"
    interrupted(monkeypatch, partial(run, card, out, shard_tokens=9_000), prepare_module, "write_json", 2)
    with pytest.raises(UserError, match=r"holds the corpus 'small' .*of another source.*--force"):
        run(make_card(documents(901, 15)), out, shard_tokens=9_000)
    card = make_card(documents(900, 15))
    for name in (max(out.glob("train-*.bin")).name, "train-00000.bin", "journal.json"):
        os.truncate(out / name, 1)
        with pytest.raises(UserError, match=rf"{name}.*--force"):
            run(card, out, shard_tokens=9_000)
    run(card, out, shard_tokens=9_000, force=True)
    TokenStore.open(out, "train")
