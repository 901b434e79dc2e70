"""Cards: YAML files that say where a data set comes from and how it is cut and split (keys: data/README.md)."""

import glob
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from mup_lightning.errors import UserError
from mup_lightning.files import read_yaml
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
        files: names or patterns relative to the card; a single one needs no list.
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
        local, hub = {"files"}, {"dataset", "revision", "subset"}
        own, required = (hub, {"dataset", "revision"}) if self.kind == "hub" else (local, local)
        given = {key for key in local | hub if getattr(self, key)}
        for key in sorted((given - own) | (required - given)):
            wrong = "is missing, which this kind needs" if key in own else "is not for this kind"
            raise UserError(
                f"source.kind is {self.kind}, and source.{key} {wrong}: expected {', '.join(sorted(required))}"
            )
        if self.document == "line" and self.kind != "text":
            raise UserError(f"source.document is only for kind text, and the kind is {self.kind}")


@dataclass
class Sections:
    """How documents are cut into sections before the split: at every match of a pattern, then to a maximum length."""

    pattern: Pattern | None = None
    max_characters: PositiveInt | None = None

    def __post_init__(self) -> None:
        """Raise UserError if neither is set."""
        if self.pattern is None and self.max_characters is None:
            raise UserError("sections needs pattern, max_characters, or both; or leave sections out")


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
    homepage: str = ""
    description: str = ""

    path = Path("card.yaml")

    def input_files(self) -> list[Path]:
        """The local files of the source, sorted, compressed or not. Raises UserError where a pattern matches none."""
        found: set[Path] = set()
        for pattern in self.source.files:
            literal = self.path.parent / pattern
            here = glob.escape(str(self.path.parent))
            matches = [str(literal)] if literal.is_file() else glob.glob(str(Path(here) / pattern), recursive=True)
            files = {Path(match) for match in matches if Path(match).is_file()}
            if not files:
                raise UserError(
                    f"{self.path}: source.files has {pattern!r}, which matches no file. Patterns are relative to the "
                    f"card's folder {self.path.parent}; check the spelling, or put the file there."
                )
            found |= files
        return sorted(found)


def load_card(path: str | Path) -> Card:
    """Read and check a card. Raises UserError naming the file, the key, what was found and what was expected."""
    path = Path(path)
    values = read_yaml(path, "a card, see data/README.md")
    try:
        card = build(Card, values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    card.path = path
    return card
