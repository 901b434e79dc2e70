"""A prepare that is killed anywhere and run again writes the same bytes as one that was left alone."""

import errno
import json
import os
import signal
import subprocess
import sys

import pytest

from mup_lightning.data import prepare as prepare_module
from mup_lightning.data.card import Validation
from mup_lightning.data.sections import is_validation
from mup_lightning.data.shards import Manifest
from mup_lightning.data.shards_old import TokenStore
from mup_lightning.data.tokenizer import BytesTokenizer
from mup_lightning.data.writer import Journal, SplitWriter
from mup_lightning.errors import UserError

from .conftest import contents, documents, run, with_bad_lines


class KilledError(BaseException):
    pass


def killing(owner, name, at, before):
    """A patch for monkeypatch: owner.name raises at its `at`-th call, before or after doing its work."""
    original, calls = getattr(owner, name), [0]

    def patched(*args, **kwargs):
        calls[0] += 1
        if calls[0] == at and before:
            raise KilledError
        result = original(*args, **kwargs)
        if calls[0] == at:
            raise KilledError
        return result

    return owner, name, patched


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize(
    ("owner", "name", "at"),
    [
        (SplitWriter, "append", 1),  # before the first journal
        (SplitWriter, "append", 333),
        (SplitWriter, "close_shard", 3),  # a shard has its final name, but no journal knows it
        (Journal, "save", 2),
        (BytesTokenizer, "encode_batch", 3),
        (prepare_module, "unigram_loss", 1),  # every shard is finished, the manifest is not
        (Manifest, "save", 1),
    ],
)
def test_killed_and_resumed_gives_the_same_bytes(make_card, tmp_path, monkeypatch, owner, name, at, before):
    card = make_card(with_bad_lines() + "".join(json.dumps({"text": t}) + "\n" for t in documents(500, 15)).encode())
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(card, whole, shard_tokens=9_000)
    assert len(contents(whole)) > 5
    with monkeypatch.context() as patch:
        patch.setattr(*killing(owner, name, at, before))
        with pytest.raises(KilledError):
            run(card, broken, shard_tokens=9_000)
    resumed = run(card, broken, shard_tokens=9_000)
    assert contents(broken) == contents(whole)
    assert resumed == Manifest.load(whole)


def test_resuming_does_not_start_again(make_card, tmp_path, monkeypatch):
    card = make_card(documents(600, 15))
    with monkeypatch.context() as patch:
        patch.setattr(*killing(Journal, "save", 2, False))
        with pytest.raises(KilledError):
            run(card, tmp_path / "out", shard_tokens=9_000)
    encoded = []
    original = BytesTokenizer.encode_batch
    monkeypatch.setattr(BytesTokenizer, "encode_batch", lambda s, t: encoded.extend(t) or original(s, t))
    run(card, tmp_path / "out", shard_tokens=9_000)
    assert 0 < len(encoded) < 500


@pytest.mark.parametrize(("owner", "name", "at"), [("SplitWriter", "append", 640), ("Journal", "save", 3)])
def test_sigkill_and_resume(make_card, tmp_path, owner, name, at):
    card = make_card(documents(900, 15))
    code = (
        "import os, signal, sys\n"
        "from mup_lightning.data.prepare import prepare\n"
        f"from mup_lightning.data.writer import {owner}\n"
        f"original, calls = {owner}.{name}, [0]\n"
        "def patched(*args):\n"
        "    original(*args)\n"
        "    calls[0] += 1\n"
        f"    if calls[0] == {at}: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"{owner}.{name} = patched\n"
        f"prepare({str(card.path)!r}, {str(tmp_path / 'broken')!r}, 'bytes', shard_tokens=9000, progress=False)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert "journal.json" in contents(tmp_path / "broken")
    run(card, tmp_path / "broken", shard_tokens=9_000)
    run(card, tmp_path / "whole", shard_tokens=9_000)
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


def test_an_unfinished_corpus_of_another_card_is_refused(make_card, tmp_path, monkeypatch):
    card = make_card(documents(600, 15))
    with monkeypatch.context() as patch:
        patch.setattr(*killing(Journal, "save", 2, False))
        with pytest.raises(KilledError):
            run(card, tmp_path / "out", shard_tokens=9_000)
    with pytest.raises(UserError, match=r"unfinished corpus of another source.*--force"):
        run(make_card(documents(601, 15)), tmp_path / "out", shard_tokens=9_000)
    card = make_card(documents(600, 15))
    for pattern in ("train-*.part", "train-00000.bin", "journal.json"):
        [victim] = (tmp_path / "out").glob(pattern)
        os.truncate(victim, 1)
        with pytest.raises(UserError, match=rf"cannot be continued: .*{victim.name}.*--force"):
            run(card, tmp_path / "out", shard_tokens=9_000)
    run(card, tmp_path / "out", shard_tokens=9_000, force=True)
    TokenStore.open(tmp_path / "out", "train")


def test_a_shard_begun_after_the_journal_is_begun_again(make_card, tmp_path, monkeypatch):
    texts = sorted(documents(900, 15), key=lambda text: is_validation(text, Validation(0.2, seed=1)))  # train first
    card = make_card(texts)
    run(card, tmp_path / "whole", shard_tokens=30_000)
    with monkeypatch.context() as patch:
        patch.setattr(*killing(SplitWriter, "append", 800, False))
        with pytest.raises(KilledError):
            run(card, tmp_path / "out", shard_tokens=30_000)
    assert json.loads((tmp_path / "out" / "journal.json").read_text())["splits"]["val"]["tokens"] == 0
    assert (tmp_path / "out" / "val-00000.bin.part").exists()
    run(card, tmp_path / "out", shard_tokens=30_000)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_full_disk_says_so_and_can_be_resumed(make_card, tmp_path, monkeypatch):
    card = make_card(documents(600, 15))
    calls = [0]
    original = SplitWriter.sync

    def sync(self):
        calls[0] += 1
        if calls[0] == 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(self)

    with monkeypatch.context() as patch:
        patch.setattr(SplitWriter, "sync", sync)
        with pytest.raises(UserError, match=r"the disk is full: .* run the same command again"):
            run(card, tmp_path / "out", shard_tokens=9_000)
    run(card, tmp_path / "out", shard_tokens=9_000)
    run(card, tmp_path / "whole", shard_tokens=9_000)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
