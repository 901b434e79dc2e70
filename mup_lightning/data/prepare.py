"""From a card to a prepared corpus: read, cut, split, tokenise, write. Killed at any point, it resumes when rerun."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mup_lightning import tables
from mup_lightning.config.schema import TokenizerName
from mup_lightning.data import documents
from mup_lightning.data.card import Card, load_card
from mup_lightning.data.shards import DTYPE, MANIFEST, SPLITS, Manifest, Split, SplitWriter, manifest_hash, read_checked
from mup_lightning.data.tokenizer import Tokenizer
from mup_lightning.errors import UserError
from mup_lightning.files import make_folder, write_json
from mup_lightning.typed import PositiveInt

SHARD_TOKENS = 100_000_000  # 200 MB a file
COUNTED = 1 << 22  # tokens counted at a time
JOURNAL = "journal.json"


@dataclass
class Journal:
    """Progress of an unfinished corpus: its manifest so far, open shards included, and the reader's position."""

    manifest: Manifest
    position: dict[str, Any]
    shard_tokens: PositiveInt


def prepare(
    card: Card | str | Path,
    out_dir: str | Path,
    tokenizer: TokenizerName = "gpt2",
    shard_tokens: int = SHARD_TOKENS,
    progress: bool = True,
    force: bool = False,
) -> Manifest:
    """Tokenise the data set of a card into a folder.

    A finished corpus of the same source and tokenizer is left as it is; an unfinished one is continued after its last
    finished shard, and ends in the same bytes as without the interruption.

    Args:
        card: the card, or its file.
        out_dir: folder to write.
        tokenizer: vocabulary.
        shard_tokens: maximum length of a shard in tokens.
        progress: show a progress bar where stderr is a terminal.
        force: overwrite whatever corpus the folder holds.

    Raises:
        UserError: the folder holds another corpus, the input is bad, a split is empty, or the disk is full (finished
            shards are kept).
    """
    card = card if isinstance(card, Card) else load_card(card)
    vocabulary = Tokenizer(tokenizer)
    folder, files, revision = Path(out_dir), card.input_files(), documents.resolve_revision(card)
    manifest = Manifest(
        name=card.name,
        tokenizer=vocabulary.name,
        vocab_size=vocabulary.vocab_size,
        vocab_hash=vocabulary.fingerprint,
        eot=vocabulary.eot,
        source_hash=documents.hash_source(card, files, revision),
        source=documents.provenance(card, revision),
        documents=0,
        text_bytes=0,
        skipped={},
        splits={split: Split() for split in SPLITS},
        unigram_loss=0.0,
    )
    with _working_in(folder), ExitStack() as stack:
        if force:
            for path in (folder / MANIFEST, folder / JOURNAL):
                path.unlink(missing_ok=True)
        if (folder / MANIFEST).exists():
            found = Manifest.load(folder)
            _check_same(folder, found, manifest, "finished")
            (folder / JOURNAL).unlink(missing_ok=True)
            return found
        position = None
        if (folder / JOURNAL).exists():
            journal = read_checked(Journal, folder / JOURNAL, "a journal; start again with --force")
            _check_same(folder, journal.manifest, manifest, "unfinished")
            manifest, position, shard_tokens = journal.manifest, journal.position, journal.shard_tokens
        writers = {name: SplitWriter(folder, name, shard_tokens, split) for name, split in manifest.splits.items()}
        for writer in writers.values():
            stack.callback(writer.close)
        reader = documents.DocumentReader(card, files, revision, position)
        _write_documents(card, reader, vocabulary, writers, manifest, progress)
        _check_splits(card, manifest)
        for writer in writers.values():
            writer.close_shard()
        manifest.skipped = dict(sorted(manifest.skipped.items()))
        manifest.unigram_loss = unigram_loss(folder, manifest.splits, manifest.vocab_size)
        manifest.save(folder)
        (folder / JOURNAL).unlink(missing_ok=True)
        return manifest


def _check_same(folder: Path, found: Manifest, wanted: Manifest, state: str) -> None:
    """Raise UserError unless a folder's corpus was made from the same text, rules and vocabulary."""
    if (found.source_hash, found.tokenizer) != (wanted.source_hash, wanted.tokenizer):
        raise UserError(
            f"{folder} already holds the {state} corpus {found.name!r} ({found.tokenizer}), of another source, card or "
            f"tokenizer than {wanted.name!r} ({wanted.tokenizer}). Choose another folder with --out, or overwrite it "
            f"with --force."
        )


def _write_documents(
    card: Card,
    reader: documents.DocumentReader,
    tokenizer: Tokenizer,
    writers: dict[str, SplitWriter],
    manifest: Manifest,
    progress: bool,
) -> None:
    """Read to the end, and save a journal whenever a shard is finished."""

    def finished() -> int:
        return sum(len(split.shards) for split in manifest.splits.values())

    shown = None if progress else True
    with tqdm(total=reader.total_bytes, initial=manifest.text_bytes, unit="B", unit_scale=True, disable=shown) as bar:
        for batch in reader:
            before = finished()
            texts = _good_texts(batch, card, tokenizer, manifest)
            sections = [section for text in texts for section in documents.cut(text, card.sections)]
            for text, ids in zip(sections, tokenizer.encode_batch(sections), strict=True):
                split = "val" if documents.is_validation(text, card.validation) else "train"
                writers[split].append(np.append(ids, np.uint16(tokenizer.eot)))
            size = sum(document.size for document in batch)
            manifest.text_bytes += size
            if reader.total_documents:  # the total in bytes is estimated from the mean so far
                bar.total = round(manifest.text_bytes / reader.read * reader.total_documents)
            bar.update(size)
            if finished() > before:
                for writer in writers.values():
                    writer.sync()
                journal = Journal(manifest, reader.position(), writers["train"].shard_tokens)
                write_json(writers["train"].folder / JOURNAL, asdict(journal))


def _good_texts(batch: list[documents.Document], card: Card, tokenizer: Tokenizer, manifest: Manifest) -> list[str]:
    """The texts to use; the others are counted by reason, or refused if the card says so."""
    texts = []
    for document in batch:
        problem = document.problem
        if document.text is not None:
            problem = tokenizer.objection(document.text)
            if problem is None:
                texts.append(document.text)
                continue
        if card.on_bad_document == "refuse":
            raise UserError(
                f"{card.path}: document {document.index} (counted from 0) is bad: {problem}. Correct it, or set "
                f"on_bad_document: skip to leave such documents out and count them."
            )
        manifest.skipped[str(problem)] = manifest.skipped.get(str(problem), 0) + 1
    manifest.documents += len(texts)
    return texts


def _check_splits(card: Card, manifest: Manifest) -> None:
    if not manifest.documents:
        skipped = ", ".join(f"{count} {reason}" for reason, count in sorted(manifest.skipped.items())) or "none read"
        raise UserError(f"{card.path}: no usable document (skipped: {skipped}).")
    for split, change in (("val", "Raise"), ("train", "Lower")):
        if not manifest.splits[split].documents:
            raise UserError(
                f"{card.path}: the {split} split is empty with validation.fraction {card.validation.fraction} and seed "
                f"{card.validation.seed}. {change} the fraction, try another seed, or cut long documents with sections."
            )


@contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    """Lock the folder against a second prepare, and turn a full disk into one clear line."""
    make_folder(folder)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise UserError(f"another process is preparing {folder}. Wait for it, or choose --out.") from None
    except OSError as error:
        raise UserError(
            f"writing to {folder} failed: {error.strerror}. Finished shards are kept; free some space (2 bytes a "
            f"token) and run the same command again to continue."
        ) from error
    finally:
        os.close(descriptor)


def unigram_loss(folder: Path, splits: dict[str, Split], vocab_size: int) -> float:
    """Mean cross-entropy (nats a token) of the validation tokens under the add-one-smoothed training frequencies.

    -sum_v m_v ln((n_v + 1) / (N + V)) / M, with n_v of N training and m_v of M validation tokens and V in the
    vocabulary: the loss of a model that has learned nothing but frequencies, which a run should soon pass.
    """
    n, m = (_count_tokens(folder, splits[split], vocab_size) for split in SPLITS)
    log_p = np.log((n + 1) / (n.sum() + vocab_size))
    return float(-(m * log_p).sum() / m.sum())


def _count_tokens(folder: Path, split: Split, vocab_size: int) -> np.ndarray:
    """How often each token occurs in a split: int64, shape (vocab_size,)."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    for shard in split.shards:
        tokens = np.memmap(folder / shard.file, dtype=DTYPE, mode="r")
        for start in range(0, len(tokens), COUNTED):
            counts += np.bincount(tokens[start : start + COUNTED], minlength=vocab_size)
    return counts


def facts(manifest: Manifest) -> dict[str, Any]:
    """What a prepared corpus holds, as plain JSON values."""
    keys = ("name", "tokenizer", "vocab_size", "documents", "skipped", "text_bytes", "unigram_loss")
    splits = {
        name: {"tokens": split.tokens, "documents": split.documents, "shards": len(split.shards)}
        for name, split in manifest.splits.items()
    }
    origin = {"licence": manifest.source.get("licence", ""), "corpus_hash": manifest_hash(manifest)}
    return {key: getattr(manifest, key) for key in keys} | origin | {"splits": splits}


def summary(manifest: Manifest) -> str:
    """What a prepared corpus holds, as a few lines of text; where documents are cut, splits count sections."""
    values = facts(manifest)
    values |= {"skipped": values["skipped"] or "none"} | values.pop("splits")
    return tables.text([(key.replace("_", " "), _words(value)) for key, value in values.items()])


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{count:,} {what}" for what, count in value.items())
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}" if isinstance(value, float) else str(value)
