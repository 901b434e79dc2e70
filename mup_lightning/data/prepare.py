"""From a card to a prepared corpus: read, cut, split, tokenise, write. Killed at any point, it goes on where it was."""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mup_lightning.config.schema import TokenizerName, check_tokenizer_name
from mup_lightning.data.card import Card, load_card
from mup_lightning.data.documents import Document, DocumentReader
from mup_lightning.data.sections import cut, is_validation
from mup_lightning.data.shards import MANIFEST, SPLITS, Manifest
from mup_lightning.data.source import hash_source, provenance, resolve_revision
from mup_lightning.data.tokenizer import Tokenizer, load_tokenizer
from mup_lightning.data.unigram import unigram_loss
from mup_lightning.data.writer import JOURNAL, Journal, SplitWriter, clear
from mup_lightning.errors import UserError

SHARD_TOKENS = 100_000_000  # 200 MB a file
BATCH_CHARACTERS = 4_000_000  # text handed to the tokenizer at once, enough for every thread to have work


def prepare(
    card: Card | str | Path,
    out_dir: str | Path,
    tokenizer: TokenizerName = "gpt2",
    shard_tokens: int = SHARD_TOKENS,
    progress: bool = True,
    force: bool = False,
) -> Manifest:
    """Tokenise the data set of `card` into `out_dir` and return the manifest.

    A finished corpus of the same source and tokenizer is left as it is; an unfinished one is continued after its last
    finished shard, to the same bytes as without the break. Raises UserError for a folder that holds something else
    (unless `force`), for bad input, an empty validation split, and a full disk (what was finished stays).
    """
    card = card if isinstance(card, Card) else load_card(card)
    check_tokenizer_name(tokenizer, "--tokenizer")
    if shard_tokens < 1:
        raise UserError(f"shard_tokens is {shard_tokens}; expected at least 1.")
    folder, files, revision = Path(out_dir), card.input_files(), resolve_revision(card)
    source_hash = hash_source(card, files, revision)
    journal = Journal({"source_hash": source_hash, "tokenizer": tokenizer, "shard_tokens": shard_tokens})
    with _working_in(folder):
        if force:
            clear(folder)
        elif (folder / MANIFEST).exists():
            return _already_there(folder, card, tokenizer, source_hash)
        else:
            journal = _continued(folder, card, journal)
        writers = {split: SplitWriter(folder, split, shard_tokens) for split in SPLITS}
        try:
            for split, state in journal.splits.items():
                writers[split].resume(state)
            with tempfile.TemporaryDirectory(prefix="mup-lightning-") as cache:
                reader = DocumentReader(card, files, revision, cache)
                symbols = load_tokenizer(tokenizer)
                _write_documents(card, reader, symbols, writers, journal, folder, progress)
            return _finish(card, symbols, writers, journal, folder, revision)
        finally:
            for writer in writers.values():
                writer.abandon()


def _write_documents(
    card: Card,
    reader: DocumentReader,
    tokenizer: Tokenizer,
    writers: dict[str, SplitWriter],
    journal: Journal,
    folder: Path,
    progress: bool,
) -> None:
    bar = tqdm(total=reader.total_bytes, initial=journal.text_bytes, unit="B", unit_scale=True, disable=not progress)
    finished = sum(len(writer.shards) for writer in writers.values())
    with bar:
        for batch in reader.batches(journal.read, journal.reader):
            texts = _good_texts(batch, card, tokenizer, journal)
            for group in _groups([section for text in texts for section in cut(text, card.sections)]):
                for text, ids in zip(group, tokenizer.encode_batch(group), strict=True):
                    split = "val" if is_validation(text, card.validation) else "train"
                    writers[split].append(np.append(ids, np.uint16(tokenizer.eot)))
            journal.read += len(batch)
            size = sum(document.size for document in batch)
            journal.text_bytes += size
            if reader.total_documents:  # the size is only known by the mean so far
                bar.total = round(journal.text_bytes / journal.read * reader.total_documents)
            bar.set_postfix_str(f"{_tokens(writers):,} tokens", refresh=False)
            bar.update(size)
            if sum(len(writer.shards) for writer in writers.values()) > finished:
                finished = sum(len(writer.shards) for writer in writers.values())
                _checkpoint(reader, writers, journal, folder)


def _checkpoint(reader: DocumentReader, writers: dict[str, SplitWriter], journal: Journal, folder: Path) -> None:
    for writer in writers.values():
        writer.sync()
    journal.reader = reader.position()
    journal.splits = {split: writer.state() for split, writer in writers.items()}
    journal.save(folder)


def _good_texts(batch: list[Document], card: Card, tokenizer: Tokenizer, journal: Journal) -> list[str]:
    """The texts to use; the others are counted by reason, or refused if the card says so."""
    texts = []
    for document in batch:
        problem = document.problem
        if problem is None and document.text is not None:
            problem = tokenizer.objection(document.text)
            if problem is None:
                texts.append(document.text)
                journal.documents += 1
                continue
        if card.on_bad_document == "refuse":
            raise UserError(
                f"{card.path}: document {document.index} (counted from 0) is bad: {problem}. Mend it, or set "
                f"on_bad_document: skip to leave such documents out and count them."
            )
        journal.skipped[str(problem)] = journal.skipped.get(str(problem), 0) + 1
    return texts


def _groups(sections: list[str]) -> Iterator[list[str]]:
    group: list[str] = []
    size = 0
    for section in sections:
        group.append(section)
        size += len(section)
        if size >= BATCH_CHARACTERS:
            yield group
            group, size = [], 0
    if group:
        yield group


def _finish(
    card: Card,
    tokenizer: Tokenizer,
    writers: dict[str, SplitWriter],
    journal: Journal,
    folder: Path,
    revision: str | None,
) -> Manifest:
    skipped = ", ".join(f"{count} {reason}" for reason, count in sorted(journal.skipped.items())) or "none"
    if not journal.documents:
        raise UserError(f"{card.path}: no usable document among the {journal.read} read (skipped: {skipped}).")
    for split, other in (("val", "train"), ("train", "val")):
        if not writers[split].documents:
            raise UserError(
                f"{card.path}: the {split} split is empty: all {writers[other].documents} documents or sections fell "
                f"to {other} with validation.fraction {card.validation.fraction} and seed {card.validation.seed}. "
                f"{'Raise' if split == 'val' else 'Lower'} the fraction, try another seed, or cut long documents "
                f"with sections."
            )
    for writer in writers.values():
        writer.close_shard()
    shards = {split: writer.shards for split, writer in writers.items()}
    manifest = Manifest(
        name=card.name,
        tokenizer=tokenizer.name,
        vocab_size=tokenizer.vocab_size,
        vocab_hash=tokenizer.fingerprint,
        eot=tokenizer.eot,
        source_hash=journal.identity["source_hash"],
        source=provenance(card, revision),
        documents=journal.documents,
        text_bytes=journal.text_bytes,
        skipped=dict(sorted(journal.skipped.items())),
        splits={split: writer.summary() for split, writer in writers.items()},
        unigram_loss=unigram_loss(folder, shards["train"], shards["val"], tokenizer.vocab_size),
    )
    manifest.save(folder)
    (folder / JOURNAL).unlink(missing_ok=True)
    return manifest


def _already_there(folder: Path, card: Card, tokenizer: str, source_hash: str) -> Manifest:
    found = Manifest.load(folder)
    if (found.source_hash, found.tokenizer) == (source_hash, tokenizer):
        (folder / JOURNAL).unlink(missing_ok=True)  # killed between the manifest and the end
        return found
    raise UserError(
        f"{folder} already holds the finished corpus {found.name!r} ({found.tokenizer}), of another source, card or "
        f"tokenizer than {card.path} ({tokenizer}). Choose another folder with --out, or overwrite it with --force."
    )


def _continued(folder: Path, card: Card, fresh: Journal) -> Journal:
    journal = Journal.load(folder)
    if journal is None:
        clear(folder)  # files of a run that was killed before its first journal
        return fresh
    if journal.identity != fresh.identity:
        raise UserError(
            f"{folder} holds an unfinished corpus of another source, card, tokenizer or shard size than {card.path}. "
            f"Choose another folder with --out, or start again with --force."
        )
    return journal


@contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    """Lock the folder against a second prepare, and say clearly when the disk is full."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}. Choose another folder with --out.") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise UserError(f"another process is preparing {folder}. Wait for it, or choose --out.") from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"the disk is full: {error.strerror} while writing to {folder}. Finished shards are kept; free some space "
            f"(2 bytes a token) and run the same command again, it continues."
        ) from error
    finally:
        os.close(descriptor)


def _tokens(writers: dict[str, SplitWriter]) -> int:
    return sum(writer.tokens + sum(shard.tokens for shard in writer.shards) for writer in writers.values())
