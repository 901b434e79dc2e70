"""Cards: YAML files that say where a data set comes from and how it is cut and split (keys: data/README.md)."""

import glob
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from mup_lightning.errors import UserError, located
from mup_lightning.files import json_sha256, read_yaml
from mup_lightning.typed import Bound, OpenUnitInterval, PositiveInt, build


def _cuts(pattern: str) -> bool:
    try:
        return re.compile(pattern, re.MULTILINE).match("") is None
    except re.error:
        return False


NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
FolderName = Annotated[str, Bound("letters, digits, '.', '_' and '-' (it names a folder)", NAME.fullmatch)]
Pattern = Annotated[str, Bound("a regular expression that does not match the empty text", _cuts)]


@dataclass
class Source:
    """Where the documents are.

    Attributes:
        kind: jsonl, text or parquet (local `files`), or hub (a `dataset` on the Hugging Face hub).
        files: names or patterns relative to the card, or to ~; a single one needs no list.
        document: for text, what one document is.
        dataset: name on the hub, with its `subset`, `revision` and `split`.
    """

    kind: Literal["jsonl", "text", "parquet", "hub"]
    files: list[str] | str = field(default_factory=list)
    document: Literal["file", "line"] = "file"
    dataset: str | None = None
    subset: str | None = None
    revision: str | None = None
    split: str = "train"

    def __post_init__(self) -> None:
        """Raise UserError for keys that do not belong to the kind, or are missing."""
        self.files = [self.files] if isinstance(self.files, str) else self.files
        hub = self.kind == "hub"
        wanted = {"files": not hub, "dataset": hub, "revision": hub, "subset": hub and self.subset is not None}
        for key, needed in wanted.items():
            if bool(getattr(self, key)) != needed:
                takes = "needs" if needed else "does not take"
                raise UserError(f"source.kind is {self.kind}, which {takes} source.{key}")
        if self.document == "line" and self.kind != "text":
            raise UserError(f"source.document is only for kind text, and the kind is {self.kind}")


@dataclass
class Sections:
    """How documents are cut into sections before the split: at every match of a pattern, then to a maximum length."""

    pattern: Pattern | None = None
    max_characters: PositiveInt | None = None


@dataclass
class Validation:
    """The share of documents (or sections) held out for validation, chosen by a hash of the text and `seed`."""

    fraction: OpenUnitInterval
    seed: int = 0


@dataclass
class Card:
    """Description of a data set. `path` is the card's own file; file names are relative to it."""

    name: FolderName
    source: Source
    validation: Validation
    licence: str
    text_column: str = "text"
    sections: Sections | None = None
    on_bad_document: Literal["skip", "refuse"] = "skip"
    deduplicate: bool = False
    homepage: str = ""
    description: str = ""

    path = Path("card.yaml")

    def input_files(self) -> list[Path]:
        """The local files of the source, sorted, compressed or not; each real file once, however many links lead to it.

        Raises UserError where a pattern matches no file, or is a folder.
        """
        found, folder = list[Path](), self.path.parent
        for pattern in self.source.files:
            if (place := folder / pattern).is_dir():
                ending = {"text": ".txt"}.get(self.source.kind, f".{self.source.kind}")
                raise UserError(
                    f"{self.path}: source.files has {pattern!r}, which is a folder; expected files, such as "
                    f"{pattern.rstrip('/')}/**/*{ending}"
                )
            before, matches = len(found), [place] if place.is_file() else _matches(folder, Path(pattern).parts)
            found += filter(Path.is_file, matches)
            if len(found) == before:
                raise UserError(
                    f"{self.path}: source.files has {pattern!r}, which matches no file below {folder}, the card's "
                    f"folder; check the spelling, or put the file there"
                )
        real: dict[Any, Path] = {}
        for path in sorted(found, key=lambda path: (path.is_symlink(), path)):
            status = path.stat()
            hard = (status.st_dev, status.st_ino) if status.st_nlink > 1 else None
            real.setdefault(hard or path.resolve(), path)
        return sorted(real.values())

    def pin(self) -> None:
        """Replace a hub data set's branch or tag by the commit it points to now; raises UserError if there is none."""
        name, revision = self.source.dataset or "", self.source.revision or ""
        if self.source.kind != "hub" or re.fullmatch(r"[0-9a-f]{40}", revision) or Path(name).is_dir():
            return
        import huggingface_hub

        try:
            self.source.revision = huggingface_hub.HfApi().dataset_info(name, revision=revision).sha
        except Exception as error:  # network, authentication, no such data set or revision: each has its own class
            raise UserError(
                f"{self.path}: the hub has not told the commit of revision {revision!r} of {name}: {error}. Check the "
                f"network and both names."
            ) from error

    def hash(self, **more: Any) -> str:
        """sha256 hex of all of the card that determines the tokens, but for the files, and of more."""
        own, source = asdict(self), self.source
        rules = {key: own[key] for key in ("text_column", "sections", "validation", "on_bad_document")}
        rules |= {"kind": source.kind, "document": source.document, "hub": None} | more
        if source.kind == "hub":
            rules["hub"] = [source.dataset, source.subset, source.revision, source.split]
        if self.deduplicate:
            rules["deduplicate"] = True
        return json_sha256(rules)

    def provenance(self) -> dict[str, Any]:
        """The manifest's entry on where the text came from."""
        source = {key: value for key, value in asdict(self.source).items() if value}
        return {**source, "licence": self.licence, "homepage": self.homepage, "description": self.description}


def _matches(folder: Path, parts: Sequence[str]) -> Iterator[Path]:
    """Like `glob` with `recursive`, but ** enters every real folder once: links may loop."""
    at = parts.index("**") if "**" in parts else len(parts)
    heads = [folder / name for name in glob.glob(str(Path(*parts[:at])), root_dir=folder)] if at else [folder]
    if at == len(parts):
        yield from heads
        return
    for head in heads:
        for below in _folders(head):
            yield from _matches(below, parts[at + 1 :] or ["*"])


def _folders(top: Path) -> Iterator[Path]:
    """A folder and all below it that are not hidden, each real one once, by its own name rather than by a link's."""
    own, links = [top], list[Path]()
    seen = set[Path]()
    while own or links:
        folder = (own or links).pop()
        if not folder.is_dir() or (real := folder.resolve()) in seen:
            continue
        seen.add(real)
        yield folder
        below = [folder / name for name in sorted(os.listdir(folder), reverse=True) if not name.startswith(".")]
        for path in filter(Path.is_dir, below):
            (links if path.is_symlink() else own).append(path)


def load_card(path: str | Path) -> Card:
    """Read and check a card. Raises UserError naming the file, the key, what was found and what was expected."""
    path = Path(path)
    with located(path):
        card = build(Card, read_yaml(path, "a card, see data/README.md"))
    card.path = path
    return card


def cut(text: str, sections: Sections | None) -> list[str]:
    """The sections of a document in order. Joined, they give the text, except that blank sections are dropped.

    With `pattern` (multi-line) a section begins at each match. With `max_characters`, longer sections are then cut
    after a blank line; where a single paragraph is too long, after a line or a word; failing that, anywhere.
    """
    if sections is None:
        return [text]
    pieces = [text]
    if sections.pattern is not None:
        starts = [match.start() for match in re.finditer(sections.pattern, text, re.MULTILINE)]
        pieces = [text[a:b] for a, b in zip([0, *starts], [*starts, len(text)], strict=True)]
    if sections.max_characters is not None:
        pieces = [short for piece in pieces for short in _shorten(piece, sections.max_characters)]
    return [piece for piece in pieces if piece.strip()]


def _shorten(text: str, longest: int) -> Iterator[str]:
    start = 0
    while len(text) - start > longest:
        last = start + longest
        ends = ((text.rfind(separator, start, last), len(separator)) for separator in ("\n\n", "\n", " "))
        end = next((at + length for at, length in ends if at >= 0), last)
        yield text[start:end]
        start = end
    yield text[start:]


def is_validation(text: str, validation: Validation) -> bool:
    """Whether a document (or section) belongs to the validation split.

    It depends on the text and the seed alone, never on the place of the document: adding documents moves no others,
    and copies of a text always land in the same split.
    """
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8, key=str(validation.seed).encode()).digest()
    return int.from_bytes(digest, "big") < validation.fraction * 2.0**64
