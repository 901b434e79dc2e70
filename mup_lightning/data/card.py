"""A card says where a data set comes from and how it is cut and split: one YAML file, data/README.md lists the keys."""

from __future__ import annotations

import difflib
import glob
import re
import types
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from mup_lightning.errors import UserError
from mup_lightning.files import read_yaml


@dataclass(frozen=True)
class Source:
    """Where the documents are: local files (`files`), or a data set on the Hugging Face hub (`dataset`)."""

    kind: Literal["jsonl", "text", "parquet", "hub"]
    files: list[str] = field(default_factory=list)
    document: Literal["file", "line"] = "file"
    dataset: str | None = None
    subset: str | None = None
    revision: str | None = None
    split: str = "train"


@dataclass(frozen=True)
class Sections:
    """How long documents are cut before they are split: at every match of a pattern, then to a greatest length."""

    pattern: str | None = None
    max_characters: int | None = None


@dataclass(frozen=True)
class Validation:
    """Which part of the documents (or sections) is kept for validation: chosen by a hash of the text and `seed`."""

    fraction: float
    seed: int = 0


@dataclass(frozen=True)
class Card:
    """A data set. `folder` is where the card lies; file names are relative to it."""

    name: str
    source: Source
    validation: Validation
    licence: str
    text_column: str = "text"
    sections: Sections | None = None
    on_bad_document: Literal["skip", "refuse"] = "skip"
    homepage: str = ""
    description: str = ""
    path: Path = field(default=Path("card.yaml"), metadata={"internal": True})

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
        chained = [str(path) for path in found if "::" in str(path)]
        if chained:
            raise UserError(f"{self.path}: the file name {chained[0]} has '::' in it, which datasets cannot open.")
        return sorted(found)


def load_card(path: str | Path) -> Card:
    """Read and check a card. Raises UserError naming the file, the key, what was found and what was expected."""
    path = Path(path)
    if not path.exists():
        near = ", ".join(sorted(str(p) for p in path.parent.glob("*.yaml"))) if path.parent.is_dir() else ""
        raise UserError(f"there is no card {path}. {'Cards there: ' + near if near else 'Give a YAML file.'}")
    data = read_yaml(path, "a card, see data/README.md")
    card: Card = _build(Card, data, path, "")
    object.__setattr__(card, "path", path)
    _check(card)
    return card


def _check(card: Card) -> None:
    source, where = card.source, card.path
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", card.name):
        raise UserError(f"{where}: name is {card.name!r}; it names a folder, so use letters, digits, '.', '_' and '-'.")
    if source.kind == "hub":
        if not source.dataset or not source.revision:
            raise UserError(f"{where}: source.kind is hub, so source.dataset and source.revision must be given.")
        if source.files:
            raise UserError(f"{where}: source.files is only for local kinds; for hub give source.dataset.")
    elif not source.files:
        raise UserError(f"{where}: source.kind is {source.kind}, so source.files must list at least one file.")
    elif source.dataset or source.subset or source.revision:
        raise UserError(f"{where}: source.dataset, subset and revision are only for kind hub; for files remove them.")
    if source.document == "line" and source.kind != "text":
        raise UserError(f"{where}: source.document is only for kind text; a line of {source.kind} is one document.")
    if not 0 < card.validation.fraction < 1:
        raise UserError(
            f"{where}: validation.fraction is {card.validation.fraction}; expected a number above 0 and below 1, e.g. "
            f"0.01."
        )
    if card.sections is not None:
        _check_sections(card.sections, where)


def _check_sections(sections: Sections, where: Path) -> None:
    if sections.pattern is None and sections.max_characters is None:
        raise UserError(f"{where}: sections needs pattern, max_characters, or both; or leave sections out.")
    if sections.max_characters is not None and sections.max_characters < 1:
        raise UserError(f"{where}: sections.max_characters is {sections.max_characters}; expected at least 1.")
    if sections.pattern is not None:
        try:
            empty = re.compile(sections.pattern, re.MULTILINE).match("")
        except re.error as error:
            raise UserError(f"{where}: sections.pattern is no regular expression: {error}.") from error
        if empty:
            raise UserError(
                f"{where}: sections.pattern {sections.pattern!r} matches the empty text, so it cuts nowhere."
            )


def _build(kind: type, data: Any, where: Path, prefix: str) -> Any:
    """An instance of the dataclass `kind` from a mapping, every key and type checked."""
    if not isinstance(data, dict):
        what = f"the key {prefix[:-1]}" if prefix else "the card"
        raise UserError(f"{where}: {what} is {data!r}; expected a mapping of keys to values.")
    hints = get_type_hints(kind)
    known = {f.name: f for f in fields(kind) if not f.metadata.get("internal")}
    for key in data:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"Did you mean {prefix}{near[0]}?" if near else f"Known keys: {', '.join(known)}."
            raise UserError(f"{where}: unknown key {prefix}{key}. {hint}")
    missing = [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING and n not in data]
    if missing:
        raise UserError(f"{where}: the key {prefix}{missing[0]} is missing ({_describe(hints[missing[0]])}).")
    return kind(**{key: _convert(hints[key], value, where, f"{prefix}{key}") for key, value in data.items()})


def _convert(hint: Any, value: Any, where: Path, key: str) -> Any:
    """`value` as the type `hint` wants it, or a UserError."""
    if get_origin(hint) in (Union, types.UnionType):
        if value is None:
            return None
        hint = next(a for a in get_args(hint) if a is not type(None))
    if is_dataclass(hint) and isinstance(hint, type):
        return _build(hint, value, where, f"{key}.")
    if hint == list[str] and isinstance(value, str):
        return [value]  # one file needs no brackets
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if get_origin(hint) is Literal:
        good = value in get_args(hint)
    elif hint == list[str]:
        good = isinstance(value, list) and all(isinstance(item, str) for item in value)
    else:
        good = isinstance(value, hint) and not (isinstance(value, bool) and hint is not bool)
    if not good:
        near = difflib.get_close_matches(str(value), get_args(hint), n=1) if get_origin(hint) is Literal else []
        mean = f" Did you mean {near[0]}?" if near else ""
        raise UserError(f"{where}: {key} is {value!r}; expected {_describe(hint)}.{mean}")
    return value


def _describe(hint: Any) -> str:
    names = {str: "a text", int: "a whole number", float: "a number", list[str]: "a list of texts"}
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(get_args(hint))
    if get_origin(hint) in (Union, types.UnionType):
        return _describe(next(a for a in get_args(hint) if a is not type(None)))
    if is_dataclass(hint):
        return "a mapping with the keys " + ", ".join(f.name for f in fields(hint))
    return names.get(hint, str(hint))
