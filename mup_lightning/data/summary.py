"""What a prepared corpus holds, as JSON values and as text."""

from __future__ import annotations

from mup_lightning.data.shards import Manifest, manifest_hash


def facts(manifest: Manifest) -> dict[str, object]:
    """The summary of a corpus as plain JSON values."""
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
    skipped = ", ".join(f"{count} {reason}" for reason, count in manifest.skipped.items()) or "none"
    lines = [
        f"corpus        {manifest.name}, tokenizer {manifest.tokenizer} ({manifest.vocab_size} tokens)",
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
