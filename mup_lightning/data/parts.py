"""A corpus prepared in parts, by several processes or by the tasks of an array job, and joined to the same bytes.

Each part is a prepared folder of its share of the source, inside the corpus's own. The join reads their tokens, one
document after the other, and writes them anew: where shards begin, and which copy of a text is kept, depends on all
before it.
"""

import multiprocessing
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from mup_lightning.data.card import Card
from mup_lightning.data.duplicates import Seen, read_records
from mup_lightning.data.prepare import COUNTED, SHARD_TOKENS, Making, chunks_of, prepare, working_in
from mup_lightning.data.shards import MANIFEST, Manifest
from mup_lightning.data.sources import WHOLE, Share, Sources
from mup_lightning.errors import UserError


def part_of(folder: Path, share: Share) -> Path:
    """The folder of part I of N of a corpus."""
    return folder / "part-{:05d}-of-{:05d}".format(*share)


def prepare_parts(
    card: Card, folder: Path, tokenizer: str = "gpt2", of: int = 2, progress: bool = True, force: bool = False
) -> Manifest:
    """Prepare a corpus by `of` processes of this machine, which share its cores; see `prepare`."""
    if not (folder / MANIFEST).exists() or force:
        with ProcessPoolExecutor(of, multiprocessing.get_context("spawn")) as pool:
            shares = [(number, of) for number in range(1, of + 1)]
            list(pool.map(partial(_prepare, card, folder, tokenizer, progress, force), shares))
    return join(card, folder, of, tokenizer, force=force)


def _prepare(card: Card, folder: Path, tokenizer: str, progress: bool, force: bool, share: Share) -> None:
    """Prepare a part in a process of its own, on its share of the cores; the first one shows its progress."""
    (number, of), cores = share, sorted(os.sched_getaffinity(os.getppid()))
    os.sched_setaffinity(0, cores[number - 1 :: of] or cores)
    prepare(card, part_of(folder, share), tokenizer, progress=progress and number == 1, force=force, share=share)


def join(
    card: Card, folder: Path, of: int, tokenizer: str = "gpt2", shard_tokens: int = SHARD_TOKENS, force: bool = False
) -> Manifest:
    """Make a corpus of its parts, which are removed after it. Killed at any point, it begins anew when rerun.

    Raises UserError where a part is missing, unfinished or of another source, card or tokenizer, or the folder holds
    another corpus.
    """
    parts = [part_of(folder, (number, of)) for number in range(1, of + 1)]
    if (folder / MANIFEST).exists() and not force:
        manifest = prepare(card, folder, tokenizer)
    else:
        manifest = _joined(card, folder, parts, tokenizer, shard_tokens)
    for part in parts:
        shutil.rmtree(part, ignore_errors=True)
    return manifest


def _joined(card: Card, folder: Path, parts: list[Path], tokenizer: str, shard_tokens: int) -> Manifest:
    known, of = Sources.of(card, [], folder, None), len(parts)
    for number, part in enumerate(parts, 1):
        if not (part / MANIFEST).is_file():
            raise UserError(
                f"part {number} of {of} is not finished: no {part / MANIFEST}; run it: --shard {number}/{of}"
            )
        # What is finished is only compared with the card and the files.
        prepare(card, part, tokenizer, progress=False, share=(number, of))
        known.files |= record.files if (record := Sources.load(part)) else {}
    making = Making(card, folder, tokenizer, known, WHOLE)
    seen = Seen(np.empty(0, "<u8")) if card.deduplicate else None
    card.pin()  # before anything is removed: it may fail
    with working_in(folder):
        (folder / MANIFEST).unlink(missing_ok=True)
        with making.writing(shard_tokens, {}):
            for part in parts:
                _append(part, making, seen)
            return making.finish()


def _append(folder: Path, making: Making, seen: Seen | None) -> None:
    """Write the documents of a part that are not copies of earlier ones, and count them."""
    part, records, manifest = Manifest.load(folder), read_records(folder), making.manifest
    manifest.documents += part.documents
    manifest.text_bytes += part.text_bytes
    for reason, count in part.skipped.items():
        manifest.leave_out(reason, count)
    fresh = np.ones(len(records), dtype=bool)
    if seen:
        for start in range(0, len(records), COUNTED):
            fresh[start : start + COUNTED] = seen.new(records["hash"][start : start + COUNTED])
        manifest.drop_duplicates(int((~fresh).sum()))
    for index, (name, split) in enumerate(manifest.splits.items()):
        kept = np.repeat(fresh, records["sections"][:, index])
        for number, ids in enumerate(_documents(folder, part, name)):
            if seen is None or kept[number]:
                making.writers[name].append(ids)
        dropped = int(records["text_bytes"][~fresh, index].sum())
        split.text_bytes = (split.text_bytes or 0) + (part.splits[name].text_bytes or 0) - dropped


def _documents(folder: Path, manifest: Manifest, split: str) -> Iterator[np.ndarray]:
    """The tokens of each document of a split, its end-of-text token included."""
    rest = np.empty(0, manifest.dtype)
    for chunk in chunks_of(folder, manifest.check(folder, split).splits[split], manifest.dtype):
        tokens = np.concatenate([rest, chunk])
        *documents, rest = np.split(tokens, np.flatnonzero(tokens == manifest.eot) + 1)
        yield from documents
