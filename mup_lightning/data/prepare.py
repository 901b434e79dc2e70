"""From a card to a prepared corpus: read, cut, split, tokenise, write. Killed at any point, it resumes when rerun."""

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mup_lightning.config.data import dtype_of
from mup_lightning.data.card import Card, cut, is_validation
from mup_lightning.data.documents import START, DocumentReader
from mup_lightning.data.duplicates import RECORD, RECORDS, hashes_of, open_records
from mup_lightning.data.shards import MANIFEST, SPLITS, Manifest, Split, SplitWriter, manifest_hash, read_checked
from mup_lightning.data.sources import WHOLE, Share, Sources, pieces
from mup_lightning.data.tokenizer import Tokenizer
from mup_lightning.errors import UserError
from mup_lightning.files import OneWriter, make_folder, sync, write_json
from mup_lightning.typed import NonNegativeInt, PositiveInt

SHARD_TOKENS = 100_000_000  # 200 MB a file
COUNTED = 1 << 20  # tokens counted at a time
JOURNAL, LOCK = "journal.json", "writer.lock"


@dataclass
class Journal:
    """Progress of an unfinished corpus: its manifest so far, open shards included, and the reader's position.

    `hashes`, split -> sha256, are of the open shards; `records` counts the documents in `duplicates.RECORDS`.
    """

    manifest: Manifest
    position: dict[str, Any]
    shard_tokens: PositiveInt
    hashes: dict[str, str] = field(default_factory=dict)
    records: NonNegativeInt = 0


def prepare(
    card: Card,
    folder: Path,
    tokenizer: str | Path = "gpt2",
    shard_tokens: int = SHARD_TOKENS,
    progress: bool = True,
    force: bool = False,
    share: Share = WHOLE,
) -> Manifest:
    """Tokenise the data set of a card into a folder, with a `tokenizer`: gpt2, bytes, or a file of another.

    A finished corpus of the same source and tokenizer is left as it is (of a hub data set, at the commit that it was
    made of); an unfinished one is continued after its last finished shard (of at most `shard_tokens`), and ends in the
    same bytes as without the interruption. `force` overwrites whatever corpus the folder holds; `progress` shows a bar
    where stderr is a terminal. `share`, number I of N, prepares a part of the corpus, for `join`.

    Raises UserError where the folder holds another corpus, the input is bad or changes meanwhile, a split is empty, or
    the disk is full (finished shards are kept).
    """
    finished, unfinished = folder / MANIFEST, folder / JOURNAL
    making = Making(card, folder, tokenizer, None if force else Sources.load(folder), share)
    if finished.exists() and not force and not unfinished.exists() and not (folder / LOCK).exists():
        return making.found()
    journal = Journal(making.manifest, START, shard_tokens)
    with working_in(folder):
        if force:
            finished.unlink(missing_ok=True)
            unfinished.unlink(missing_ok=True)
        if finished.exists():
            unfinished.unlink(missing_ok=True)
            return making.found()
        if unfinished.exists():
            journal = read_checked(Journal, unfinished)
            making.manifest = making.same(journal.manifest)
        with making.writing(journal.shard_tokens, journal.hashes):
            _write(making, journal, progress)
            return making.finish()


class Making:
    """A corpus being made in a folder, from a share of a card's source.

    Attributes:
        known: what the corpus that is there already was made of.
        sources: what it would be made of now.
        manifest: of the new corpus, so far.
        writers: of its splits, see `writing`.
    """

    def __init__(self, card: Card, folder: Path, tokenizer: str | Path, known: Sources | None, share: Share) -> None:
        self.card, self.folder, self.known, self.share = card, folder, known, share
        self.tokenizer = Tokenizer(tokenizer)
        self.sources = Sources.of(card, self._files(), folder, known)
        self.writers: dict[str, SplitWriter] = {}

    def _files(self) -> list[Path]:
        """The local files of the share, in order; a hub's has none."""
        if self.share == WHOLE:
            return self.card.input_files()
        return list(dict.fromkeys(piece.path for piece in pieces(self.card, self.share)))

    @cached_property
    def manifest(self) -> Manifest:
        """The new corpus's, at first without tokens; reading it pins the card."""
        self.card.pin()
        names = [(Path(name).name, file.sha256) for name, file in self.sources.files.items()]
        self.sources.source_hash = self.card.hash(files=names) + f" {self.share}" * (self.share != WHOLE)
        begun = Manifest.begin(self.card.name, self.tokenizer.name, self.tokenizer.vocabulary)
        begun.source_hash, begun.source = self.sources.source_hash, self.card.provenance()
        return begun

    def found(self) -> Manifest:
        """The manifest of the finished corpus in the folder; raises UserError where it is of something else."""
        found, changes = Manifest.load(self.folder), self.known.changes(self.sources) if self.known else ""
        now = (self.known.source_hash, self.tokenizer.vocabulary.sha256) if self.known and not changes else None
        if (found.source_hash, found.vocab_hash) != now:
            self.same(found, changes)
            with suppress(OSError):  # on a read-only disk
                self.sources.save(self.folder)
        return found

    def same(self, found: Manifest, changes: str = "") -> Manifest:
        """`found`; raises UserError, with known `changes`, unless it is of the same text, rules and vocabulary."""
        wanted = self.manifest
        if (found.source_hash, found.vocab_hash) == (wanted.source_hash, wanted.vocab_hash):
            return found
        raise UserError(
            f"{self.folder} already holds the corpus {found.name!r} ({found.tokenizer}), of another source, card or "
            f"tokenizer than {wanted.name!r} ({wanted.tokenizer}){changes and ': '}{changes}. Train on it as it is "
            f"(data.path), choose another folder with --out, or overwrite it with --force."
        )

    @contextmanager
    def writing(self, shard_tokens: int, hashes: dict[str, str]) -> Iterator[None]:
        """Hold the writers of the splits open; `hashes` are of open shards that an earlier writer has left."""
        with ExitStack() as stack:
            for name, split in self.manifest.splits.items():
                known = hashes.get(name, "")
                writer = SplitWriter(self.folder, name, shard_tokens, split, known, self.manifest.dtype)
                self.writers[name] = stack.enter_context(closing(writer))
            self.tokenizer.save(self.folder)
            yield

    def finish(self) -> Manifest:
        """Close the shards and write the manifest last. A part may lack a split, and keeps what `join` needs."""
        card, folder, manifest = self.card, self.folder, self.manifest
        empty = [name for name, split in manifest.splits.items() if not split.documents]
        if empty and self.share == WHOLE:
            skipped = ", ".join(f"{count} {reason}" for reason, count in sorted(manifest.skipped.items())) or "none"
            advice = (
                f"Change validation.fraction ({card.validation.fraction}), try another seed, or cut long documents."
            )
            raise UserError(
                f"{card.path}: nothing for the split {' or '.join(empty)} in {manifest.documents} usable documents "
                f"(skipped: {skipped}). {advice if manifest.documents else 'Check source and its files.'}"
            )
        for writer in self.writers.values():
            writer.close_shard()
        manifest.skipped = dict(sorted(manifest.skipped.items()))
        if self.share == WHOLE:
            manifest.unigram_loss = unigram_loss(folder, manifest.splits, manifest.vocab_size)
            (folder / RECORDS).unlink(missing_ok=True)
        files = self._files()
        if files and (changes := self.sources.changes(Sources.of(card, files, folder, self.sources))):
            raise UserError(f"{card.path}: files changed while they were read ({changes}); repeat with --force")
        self.sources.save(folder)
        manifest.save(folder)
        (folder / JOURNAL).unlink(missing_ok=True)
        return manifest


def _write(making: Making, journal: Journal, progress: bool) -> None:
    """Read and write to the end; when a shard has been finished, the journal follows what is before it to the disk."""
    card, tokenizer, manifest, writers = making.card, making.tokenizer, making.manifest, making.writers
    reader = DocumentReader(card, tokenizer.objection, manifest, journal.position, making.share)
    eot, shown = tokenizer.dtype.type(tokenizer.eot), None if progress else True
    bar = tqdm(total=reader.total_bytes, initial=manifest.text_bytes, unit="B", unit_scale=True, disable=shown)
    with bar, ExitStack() as stack:
        if card.deduplicate:
            records, seen = open_records(making.folder, journal.records)
            stack.enter_context(records)
        for texts in reader:
            before = [len(split.shards) for split in manifest.splits.values()]
            kept = np.zeros(len(texts), RECORD)
            if card.deduplicate:
                kept["hash"] = hashes_of(texts)
                fresh = seen.new(kept["hash"])
                kept, texts = kept[fresh], [text for text, is_new in zip(texts, fresh, strict=True) if is_new]
                manifest.drop_duplicates(len(fresh) - len(texts))
            sections = [(i, section) for i, text in enumerate(texts) for section in cut(text, card.sections)]
            encoded = tokenizer.encode_batch([text for _, text in sections])
            for (document, text), ids in zip(sections, encoded, strict=True):
                split, size = int(is_validation(text, card.validation)), len(text.encode())
                writers[SPLITS[split]].append(np.append(ids, eot), size)
                kept["sections"][document, split] += 1
                kept["text_bytes"][document, split] += size
            if reader.total_documents:  # the total in bytes is estimated from the mean so far
                bar.total = round(manifest.text_bytes / reader.read * reader.total_documents)
            bar.update(manifest.text_bytes - bar.n)
            if card.deduplicate:
                records.write(kept.tobytes())
            if before != [len(split.shards) for split in manifest.splits.values()]:
                for writer in writers.values():
                    writer.sync()
                if card.deduplicate:
                    sync(records)
                    journal.records = records.tell() // RECORD.itemsize
                journal.position = reader.position()
                journal.hashes = {name: writer.open_hash() for name, writer in writers.items()}
                write_json(making.folder / JOURNAL, asdict(journal))


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Lock the folder against a second prepare, and turn a full disk into one clear line."""
    make_folder(folder)
    try:
        with OneWriter(folder / LOCK, f"the corpus {folder}"):
            yield
    except OSError as error:
        raise UserError(
            f"writing to {folder} failed: {error.strerror}. Finished shards are kept; free some space (2 bytes a "
            f"token, 4 of a large vocabulary) and run the same command again to continue."
        ) from error


def unigram_loss(folder: Path, splits: dict[str, Split], vocab_size: int) -> float:
    """Mean cross-entropy (nats a token) of the validation tokens under the add-one-smoothed training frequencies.

    -sum_v m_v ln((n_v + 1) / (N + V)) / M, with n_v of N training and m_v of M validation tokens and V in the
    vocabulary: the loss of a model that has learned nothing but frequencies, which a run should soon pass.
    """
    n, m = np.zeros((2, vocab_size), dtype=np.int64)
    for counts, split in ((n, "train"), (m, "val")):
        for tokens in chunks_of(folder, splits[split], dtype_of(vocab_size)):
            counts += np.bincount(tokens, minlength=vocab_size)
    log_p = np.log((n + 1) / (n.sum() + vocab_size))
    return float(-(m * log_p).sum() / m.sum())


def chunks_of(folder: Path, split: Split, dtype: str) -> Iterator[np.ndarray]:
    """The tokens of a split, `COUNTED` at a time. Not memory-mapped: pages of a whole shard would count as memory."""
    for shard in split.shards:
        with (folder / shard.file).open("rb") as stream:
            while len(tokens := np.fromfile(stream, dtype, COUNTED)):
                yield tokens


def facts(manifest: Manifest) -> dict[str, Any]:
    """What a prepared corpus holds: its manifest, the number of shards in place of each, and its hash."""
    values = {"corpus_hash": manifest_hash(manifest), **asdict(manifest)}
    for split in values["splits"].values():
        split["shards"] = len(split["shards"])
    return values
