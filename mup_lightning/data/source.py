"""Which text exactly a card stands for: the commit of a hub data set, the contents of files, and how they are cut."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mup_lightning.data.card import Card
from mup_lightning.errors import UserError


def resolve_revision(card: Card) -> str | None:
    """The commit of a hub data set: as the card pins it, or what the hub says its branch or tag points to now."""
    source = card.source
    if source.kind != "hub" or source.revision is None or Path(source.dataset or "").is_dir():
        return None
    if re.fullmatch(r"[0-9a-f]{40}", source.revision):
        return source.revision
    import huggingface_hub

    try:
        return huggingface_hub.HfApi().dataset_info(source.dataset or "", revision=source.revision).sha
    except Exception as error:  # network, authentication, no such data set or revision: each has its own class
        raise UserError(
            f"{card.path}: cannot ask the hub for revision {source.revision!r} of {source.dataset}: {error}. Check the "
            f"network and both names."
        ) from error


def hash_source(card: Card, files: list[Path], revision: str | None) -> str:
    """sha256 hex of everything that decides the tokens: the card's rules, and the files' contents or the commit."""
    source = card.source
    rules: dict[str, Any] = {
        "kind": source.kind,
        "document": source.document,
        "hub": [source.dataset, source.subset, revision, source.split] if source.kind == "hub" else None,
        "text_column": card.text_column,
        "sections": asdict(card.sections) if card.sections else None,
        "validation": asdict(card.validation),
        "on_bad_document": card.on_bad_document,
        "files": [],
    }
    for path in files:
        with open(path, "rb") as file:
            rules["files"].append([path.name, hashlib.file_digest(file, "sha256").hexdigest()])
    return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()


def provenance(card: Card, revision: str | None) -> dict[str, Any]:
    """What the manifest tells of where the text came from."""
    source = {key: value for key, value in asdict(card.source).items() if value}
    source |= {"revision": revision} if revision else {}
    return {**source, "licence": card.licence, "homepage": card.homepage, "description": card.description}
