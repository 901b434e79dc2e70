"""What a prepared corpus says of itself: manifest.json, written last, so that a folder without one is unfinished."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from mup_lightning.config.schema import VOCAB_SIZES, VOCABULARY_HASHES, check_tokenizer_name
from mup_lightning.errors import UserError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
DTYPE = "<u2"  # raw little-endian uint16, without a header
SPLITS = ("train", "val")


@dataclass
class Shard:
    """One file of raw tokens: its name, its length in tokens, and the sha256 of its bytes."""

    file: str
    tokens: int
    sha256: str


@dataclass
class Split:
    """One half of a corpus: tokens (each document's end-of-text symbol included), documents, shards in order."""

    tokens: int
    documents: int
    shards: list[Shard] = field(default_factory=list)


@dataclass
class Manifest:
    """The contents of manifest.json. It holds no date and no path: equal sources give equal bytes.

    `documents` counts what was read and used, `skipped` what was read and left out, by reason; the documents of the
    splits are sections where the card cuts documents. `unigram_loss` is the mean cross-entropy in nats of the
    validation tokens under the add-one-smoothed frequencies of the training tokens: a model that has learned nothing
    but word frequencies has this loss. `source` says where the text came from and under which licence.
    """

    name: str
    tokenizer: str
    vocab_size: int
    vocab_hash: str
    eot: int
    source_hash: str
    source: dict[str, Any]
    documents: int
    text_bytes: int
    skipped: dict[str, int]
    splits: dict[str, Split]
    unigram_loss: float
    dtype: str = DTYPE
    format_version: int = FORMAT_VERSION

    @classmethod
    def load(cls, folder: str | Path) -> Manifest:
        """Read the manifest of a prepared folder.

        Raises UserError where the folder or the manifest is missing, unreadable, or of another format version.
        """
        path = Path(folder) / MANIFEST
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(_missing(Path(folder))) from None
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({error}). Prepare the corpus again with --force.") from error
        version = data.get("format_version") if isinstance(data, dict) else None
        if version != FORMAT_VERSION:
            raise UserError(
                f"{path} has format version {version!r}, this program reads version {FORMAT_VERSION}. "
                f"Prepare the corpus again with --force, or use the program that wrote it."
            )
        wrong = sorted({f.name for f in fields(cls)} ^ set(data))
        if wrong:
            raise UserError(
                f"{path} lacks, or has too many of, the keys {', '.join(wrong)}. Prepare it again (--force)."
            )
        try:
            splits = data["splits"].items()
            data["splits"] = {n: Split(**{**s, "shards": [Shard(**shard) for shard in s["shards"]]}) for n, s in splits}
        except (AttributeError, KeyError, TypeError) as error:
            raise UserError(f"{path} lists its shards wrongly ({error}). Prepare it again (--force).") from error
        if set(data["splits"]) != set(SPLITS) or data["dtype"] != DTYPE:
            raise UserError(f"{path} needs the splits {SPLITS} and the dtype {DTYPE!r}. Prepare it again (--force).")
        return cls(**data)

    def save(self, folder: str | Path) -> None:
        """Write manifest.json into `folder`, at once or not at all."""
        write_json(Path(folder) / MANIFEST, asdict(self))


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write `data` to `path` by way of a temporary file, so that no reader ever sees half of it."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(data, file, indent=1, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def manifest_hash(manifest: Manifest) -> str:
    """sha256 hex of what makes two corpora interchangeable: the vocabulary and the shards' contents, in order.

    Checkpoints carry it, so that a run is never resumed on other data. Names, counts and licences do not enter.
    """
    content = {split: [s.sha256 for s in manifest.splits[split].shards] for split in SPLITS}
    text = json.dumps({"vocabulary": manifest.vocab_hash, "shards": content}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def check_vocabulary(manifest: Manifest, tokenizer_name: str) -> None:
    """Raise UserError unless the corpus was prepared with the vocabulary of `tokenizer_name`."""
    check_tokenizer_name(tokenizer_name)
    expected = (VOCAB_SIZES[tokenizer_name], VOCABULARY_HASHES[tokenizer_name])
    if (manifest.vocab_size, manifest.vocab_hash) != expected:
        raise UserError(
            f"manifest of another vocabulary: corpus {manifest.name!r} was prepared with the tokenizer "
            f"{manifest.tokenizer!r} ({manifest.vocab_size} symbols, hash {manifest.vocab_hash[:12]}), but "
            f"data.tokenizer is {tokenizer_name!r} ({expected[0]} symbols, hash {expected[1][:12]}). "
            f"Set data.tokenizer to match, or prepare the corpus with --tokenizer {tokenizer_name}."
        )


def _missing(folder: Path) -> str:
    if not folder.is_dir():
        what = f"there is no prepared corpus at {folder}: no such folder"
    elif (folder / "journal.json").exists():
        what = f"{folder} holds an unfinished corpus: {MANIFEST} is written last and is not there yet"
    else:
        what = f"{folder} is no prepared corpus: it has no {MANIFEST}"
    tokenizer = " --tokenizer bytes" if folder.name.endswith("-bytes") else ""
    return f"{what}. Run: mup-lightning data prepare data/austen.yaml{tokenizer} (or your own card), or set data.path."
