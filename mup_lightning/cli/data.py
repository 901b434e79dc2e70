"""`mup-lightning data`: prepare a corpus, verify it, show what is in it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mup_lightning.data.shards import Manifest

PREPARED = Path("data/prepared")


def main(argv: list[str]) -> int:
    """Run `mup-lightning data ARGV...`; returns the exit status. Raises UserError for what the user can mend."""
    args = parser().parse_args(argv)
    status: int = args.run(args)
    return status


def parser() -> argparse.ArgumentParser:
    """The command line's grammar (imports neither torch nor datasets)."""
    top = argparse.ArgumentParser(
        allow_abbrev=False,
        prog="mup-lightning data",
        description="Turn text into token shards, and check them.",
        epilog="example:\n  mup-lightning data prepare data/austen.yaml",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = top.add_subparsers(required=True, metavar="VERB")

    prepare = _verb(
        verbs,
        "prepare",
        "tokenise the data set of a card",
        "mup-lightning data prepare data/austen.yaml\n  "
        "mup-lightning data prepare mine.yaml --tokenizer bytes --out /scratch/mine",
    )
    prepare.add_argument("card", metavar="CARD", help="YAML card of the data set (see data/README.md)")
    prepare.add_argument("--out", metavar="DIR", help=f"folder to write (default: {PREPARED}/<card name>-<tokenizer>)")
    prepare.add_argument("--tokenizer", choices=["gpt2", "bytes"], default="gpt2", help="vocabulary (default: gpt2)")
    prepare.add_argument("--force", action="store_true", help="overwrite whatever corpus the folder holds")
    prepare.add_argument("--quiet", action="store_true", help="no progress bar")
    prepare.set_defaults(run=_prepare)

    verify = _verb(
        verbs,
        "verify",
        "read every shard and compare it with the manifest",
        "mup-lightning data verify data/prepared/austen-gpt2",
    )
    verify.add_argument("folder", metavar="DIR", help="a prepared corpus")
    verify.set_defaults(run=_verify)

    show = _verb(
        verbs,
        "show",
        "print what a prepared corpus holds",
        "mup-lightning data show data/prepared/austen-gpt2 --json",
    )
    show.add_argument("folder", metavar="DIR", help="a prepared corpus")
    show.add_argument("--json", action="store_true", help="the summary as one JSON object")
    show.set_defaults(run=_show)
    return top


def _verb(verbs: argparse._SubParsersAction, name: str, what: str, example: str) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = verbs.add_parser(
        name,
        allow_abbrev=False,
        help=what,
        description=what[0].upper() + what[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return made


def _prepare(args: argparse.Namespace) -> int:
    from mup_lightning.data.card import load_card
    from mup_lightning.data.prepare import prepare
    from mup_lightning.data.shards import MANIFEST

    card = load_card(args.card)
    folder = Path(args.out) if args.out else PREPARED / f"{card.name}-{args.tokenizer}"
    was_there = (folder / MANIFEST).exists() and not args.force
    manifest = prepare(card, folder, args.tokenizer, progress=not args.quiet, force=args.force)
    print("already prepared, nothing to do" if was_there else "prepared", f"({folder})")
    print(summary(manifest))
    return 0


def _verify(args: argparse.Namespace) -> int:
    from mup_lightning.data.shards import SPLITS, TokenStore

    for split in SPLITS:
        store = TokenStore.open(args.folder, split, verify=True)
    print(summary(store.manifest))
    print("every shard matches the manifest")
    return 0


def _show(args: argparse.Namespace) -> int:
    from mup_lightning.data.shards import Manifest

    manifest = Manifest.load(args.folder)
    print(json.dumps(facts(manifest), indent=1, ensure_ascii=False) if args.json else summary(manifest))
    return 0


def facts(manifest: Manifest) -> dict[str, object]:
    """The summary of a corpus as plain JSON values."""
    from mup_lightning.data.shards import manifest_hash

    return {
        "name": manifest.name,
        "tokenizer": manifest.tokenizer,
        "vocab_size": manifest.vocab_size,
        "documents": manifest.documents,
        "skipped": manifest.skipped,
        "text_bytes": manifest.text_bytes,
        "splits": {
            name: {"tokens": split.tokens, "documents": split.documents, "shards": len(split.shards)}
            for name, split in manifest.splits.items()
        },
        "unigram_loss": manifest.unigram_loss,
        "licence": manifest.source.get("licence", ""),
        "corpus_hash": manifest_hash(manifest),
    }


def summary(manifest: Manifest) -> str:
    """The summary of a corpus as a few lines of text."""
    from mup_lightning.data.shards import manifest_hash

    skipped = ", ".join(f"{count} {reason}" for reason, count in manifest.skipped.items()) or "none"
    lines = [
        f"corpus        {manifest.name}, tokenizer {manifest.tokenizer} ({manifest.vocab_size} symbols)",
        f"read          {manifest.documents:,} documents, {manifest.text_bytes:,} bytes",
        f"skipped       {skipped}",
    ]
    for name, split in manifest.splits.items():
        where = f"{split.documents:,} documents or sections, {len(split.shards)} shards"
        lines.append(f"{name:13} {split.tokens:,} tokens in {where}")
    lines += [
        f"unigram loss  {manifest.unigram_loss:.4f} nats a token",
        f"licence       {manifest.source.get('licence', '')}",
        f"corpus hash   {manifest_hash(manifest)}",
    ]
    return "\n".join(lines)
