"""From a card to a prepared corpus: read, cut, split, tokenise, write. Killed at any point, it resumes when rerun."""

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mup_lightning.config.data import dtype_of
from mup_lightning.data.card import Card, cut, is_validation
from mup_lightning.data.documents import DocumentReader
from mup_lightning.data.duplicates import RECORD, RECORDS, Records, hashes_of
from mup_lightning.data.shards import MANIFEST, SPLITS, Manifest, Split, SplitWriter, manifest_hash, read_checked
from mup_lightning.data.sources import WHOLE, Piece, Sources, pieces
from mup_lightning.data.tokenizer import Tokenizer
from mup_lightning.errors import UserError
from mup_lightning.files import OneWriter, make_folder, write_json
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
    share: tuple[int, int] = WHOLE,
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
    files, known = _files_of(card, share), None if force else Sources.load(folder)
    vocabulary = Tokenizer(tokenizer)
    sources = Sources.of(card, files, folder, known)
    changes = known.changes(sources) if known else ""
    done = finished.exists() and not force and not unfinished.exists() and not (folder / LOCK).exists()
    if done and known and not changes:
        found = Manifest.load(folder)
        if (found.source_hash, found.vocab_hash) == (known.source_hash, vocabulary.vocabulary.sha256):
            return found
    manifest = begin(card, sources, files, vocabulary, share)
    if done:
        found = same(Manifest.load(folder), manifest, folder, changes)
        with suppress(OSError):  # on a read-only disk
            sources.save(folder)
        return found
    with working_in(folder), ExitStack() as stack:
        if force:
            finished.unlink(missing_ok=True)
            unfinished.unlink(missing_ok=True)
        if finished.exists():
            unfinished.unlink(missing_ok=True)
            return same(Manifest.load(folder), manifest, folder, changes)
        journal = Journal(manifest, {"read": 0, "dataset": None}, shard_tokens)
        if unfinished.exists():
            journal = read_checked(Journal, unfinished)
            manifest = same(journal.manifest, manifest, folder, "")
        writers = writers_of(folder, manifest, journal.shard_tokens, stack, journal.hashes)
        vocabulary.save(folder)
        records = stack.enter_context(closing(Records(folder, journal.records))) if card.deduplicate else None
        reader = DocumentReader(card, card.input_files(), vocabulary.objection, manifest, journal.position, share)
        for _ in _written(card, reader, vocabulary, writers, records, progress):
            journal.records = records.count if records else 0
            journal.position = reader.position()
            journal.hashes = {name: writer.open_hash() for name, writer in writers.items()}
            write_json(unfinished, asdict(journal))
        return finish(card, folder, manifest, writers, sources, share)


def begin(
    card: Card, sources: Sources, files: list[Path], tokenizer: Tokenizer, share: tuple[int, int] = WHOLE
) -> Manifest:
    """The manifest of a corpus without tokens; pins the card, and says in `sources` what is made of these files."""
    card.pin()
    names = [(path.name, state.sha256) for path, state in zip(files, sources.files.values(), strict=True)]
    sources.source_hash = card.hash(files=names) + (f" {share}" if share != WHOLE else "")
    return Manifest.begin(card.name, tokenizer.name, sources.source_hash, card.provenance(), tokenizer.vocabulary)


def writers_of(
    folder: Path, manifest: Manifest, shard_tokens: int, stack: ExitStack, hashes: dict[str, str] | None = None
) -> dict[str, SplitWriter]:
    """Split -> its writer, which the stack closes; `hashes` are of open shards that an earlier writer has left."""
    writers = {}
    for name, split in manifest.splits.items():
        writer = SplitWriter(folder, name, shard_tokens, split, (hashes or {}).get(name, ""), manifest.dtype)
        writers[name] = stack.enter_context(closing(writer))
    return writers


def _files_of(card: Card, share: tuple[int, int]) -> list[Path]:
    """The local files of a share of a card's source, in order; a hub's has none."""
    files = card.input_files()
    own = pieces(card, files, share) if share != WHOLE and files else map(Piece, files)
    return list(dict.fromkeys(piece.path for piece in own))


def finish(
    card: Card,
    folder: Path,
    manifest: Manifest,
    writers: dict[str, SplitWriter],
    sources: Sources,
    share: tuple[int, int] = WHOLE,
) -> Manifest:
    """Close the shards and write the manifest last; of a part, which may lack a split, what `join` needs is kept."""
    empty = [name for name, split in manifest.splits.items() if not split.documents]
    if empty and share == WHOLE:
        skipped = ", ".join(f"{count} {reason}" for reason, count in sorted(manifest.skipped.items())) or "none"
        advice = f"Change validation.fraction ({card.validation.fraction}), try another seed, or cut long documents."
        raise UserError(
            f"{card.path}: nothing for the split {' or '.join(empty)} in {manifest.documents} usable documents "
            f"(skipped: {skipped}). {advice if manifest.documents else 'Check source and its files.'}"
        )
    for writer in writers.values():
        writer.close_shard()
    manifest.skipped = dict(sorted(manifest.skipped.items()))
    files = _files_of(card, share)
    if share == WHOLE:
        manifest.unigram_loss = unigram_loss(folder, manifest.splits, manifest.vocab_size)
        (folder / RECORDS).unlink(missing_ok=True)
    if files and (changes := sources.changes(Sources.of(card, files, folder, sources))):
        raise UserError(f"{card.path}: files changed while they were read ({changes}); repeat with --force")
    sources.save(folder)
    manifest.save(folder)
    (folder / JOURNAL).unlink(missing_ok=True)
    return manifest


def same(found: Manifest, wanted: Manifest, folder: Path, changes: str) -> Manifest:
    """`found`; raises UserError, with known `changes`, unless it was made from the same text, rules and vocabulary."""
    if (found.source_hash, found.vocab_hash) == (wanted.source_hash, wanted.vocab_hash):
        return found
    raise UserError(
        f"{folder} already holds the corpus {found.name!r} ({found.tokenizer}), of another source, card or tokenizer "
        f"than {wanted.name!r} ({wanted.tokenizer}){changes and ': '}{changes}. Train on it as it is (data.path), "
        f"choose another folder with --out, or overwrite it with --force."
    )


def _written(
    card: Card,
    reader: DocumentReader,
    tokenizer: Tokenizer,
    writers: dict[str, SplitWriter],
    records: Records | None,
    progress: bool,
) -> Iterator[None]:
    """Read and write to the end; pauses whenever a shard has been finished, with everything before it on the disk."""
    manifest, shown = reader.manifest, None if progress else True
    eot = tokenizer.dtype.type(tokenizer.eot)
    with tqdm(total=reader.total_bytes, initial=manifest.text_bytes, unit="B", unit_scale=True, disable=shown) as bar:
        for texts in reader:
            before = [len(split.shards) for split in manifest.splits.values()]
            kept = np.zeros(len(texts), RECORD)
            if records:
                kept["hash"] = hashes_of(texts)
                fresh = records.seen.new(kept["hash"])
                kept, texts = kept[fresh], [text for text, is_new in zip(texts, fresh, strict=True) if is_new]
                drop_duplicates(manifest, len(fresh) - len(texts))
            sections = [(i, section) for i, text in enumerate(texts) for section in cut(text, card.sections)]
            encoded = tokenizer.encode_batch([text for _, text in sections])
            for (document, text), ids in zip(sections, encoded, strict=True):
                split, size = int(is_validation(text, card.validation)), len(text.encode())
                writers[SPLITS[split]].append(np.append(ids, eot), size)
                kept["sections"][document, split] += 1
                kept["text_bytes"][document, split] += size
            if records:
                records.append(kept)
            if reader.total_documents:  # the total in bytes is estimated from the mean so far
                bar.total = round(manifest.text_bytes / reader.read * reader.total_documents)
            bar.update(manifest.text_bytes - bar.n)
            if before != [len(split.shards) for split in manifest.splits.values()]:
                for writer in writers.values():
                    writer.sync()
                if records:
                    records.sync()
                yield


def drop_duplicates(manifest: Manifest, count: int) -> None:
    """Count documents as left out that were counted as used."""
    if count:
        manifest.documents -= count
        manifest.skipped["duplicate"] = manifest.skipped.get("duplicate", 0) + count


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
