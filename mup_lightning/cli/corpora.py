"""The verbs that prepare corpora and look at them."""

import time
from dataclasses import dataclass
from pathlib import Path

from mup_lightning.cli.verbs import print_plain
from mup_lightning.errors import UserError
from mup_lightning.typed import PositiveInt, Shard, Typed


@dataclass
class PrepareSettings(Typed, prefix="--"):
    """Tokenise the data set of a card into shards; a stopped preparation continues.

    Attributes:
        card: YAML card of the data set (see data/README.md).
        out: folder to write; null: data/prepared/CARD-TOKENIZER.
        tokenizer: gpt2, bytes, or a file: .tiktoken, tokenizer.json, or a description .yaml (see data/README.md).
        processes: that share the work on this machine, each a part of the files or row groups: the same corpus.
        shard: I/N: prepare part I of N only, as a task of an array job does; null: the whole corpus.
        join: N: make the corpus of its N parts, when all are prepared; null: there are none.
        force: overwrite whatever corpus the folder holds.
        quiet: no progress bar.
    """

    card: Path
    out: Path | None = None
    tokenizer: str = "gpt2"
    processes: PositiveInt = 1
    shard: Shard | None = None
    join: PositiveInt | None = None
    force: bool = False
    quiet: bool = False


@dataclass
class CorpusSettings(Typed, prefix="--"):
    """A prepared corpus.

    Attributes:
        folder: the corpus.
        json: print JSON, not YAML.
    """

    folder: Path
    json: bool = False


def prepare(settings: PrepareSettings) -> None:
    """Tokenise a corpus."""
    from mup_lightning.data.card import load_card
    from mup_lightning.data.parts import join, part_of, prepare_parts
    from mup_lightning.data.prepare import facts, prepare
    from mup_lightning.data.shards import MANIFEST
    from mup_lightning.data.sources import WHOLE
    from mup_lightning.data.tokenizer import Tokenizer

    if sum([settings.shard is not None, settings.join is not None, settings.processes > 1]) > 1:
        raise UserError("--shard prepares a part, --join makes the corpus of all, --processes does both; give one")

    card = load_card(settings.card)
    folder = settings.out or Path("data/prepared") / f"{card.name}-{Tokenizer(settings.tokenizer).name}"
    share = WHOLE
    if settings.shard:
        number, of = map(int, settings.shard.split("/"))
        share, folder = (number, of), part_of(folder, (number, of))
    was_there, begin = (folder / MANIFEST).exists() and not settings.force, time.monotonic()
    tokenizer, progress, force = settings.tokenizer, not settings.quiet, settings.force
    if settings.join:
        manifest = join(card, folder, settings.join, tokenizer, force=force)
    elif settings.processes > 1:
        manifest = prepare_parts(card, folder, tokenizer, settings.processes, progress, force)
    else:
        manifest = prepare(card, folder, tokenizer, progress=progress, force=force, share=share)
    if not was_there and progress:
        seconds = time.monotonic() - begin
        print(
            f"{manifest.text_bytes / 1e6:,.1f} MB in {seconds:,.0f} s, {manifest.text_bytes / 1e6 / seconds:.1f} MB/s"
        )
    print("already prepared, nothing to do" if was_there else "prepared", f"({folder})")
    print_plain(facts(manifest), as_json=False)


def verify(settings: CorpusSettings) -> None:
    """Read every shard of a corpus and compare it with the manifest."""
    from mup_lightning.data.shards import SPLITS, TokenStore

    for split in SPLITS:
        TokenStore.open(settings.folder, split, verify=True)
    print("every shard matches the manifest")
    show(settings)


def show(settings: CorpusSettings) -> None:
    """Print what a prepared corpus holds."""
    from mup_lightning.data.prepare import facts
    from mup_lightning.data.shards import Manifest
    from mup_lightning.data.sources import note_changes

    note_changes(settings.folder)
    print_plain(facts(Manifest.load(settings.folder)), settings.json)
