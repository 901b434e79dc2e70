"""Dataclasses whose values are checked against the types of their fields, bounds included.

The type of a field says what a value may be, as in `width: PositiveInt`, whether it comes from Python, a YAML file or
the command line. The docstring's `Attributes:` are the help texts. Imports nothing heavy.
"""

import inspect
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, dataclass, fields, is_dataclass
from difflib import get_close_matches
from enum import Enum
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from mup_lightning.errors import UsageError, UserError


@dataclass(frozen=True)
class Bound:
    """What a value must satisfy in addition to its type: `Annotated[int, Bound(...)]`.

    Attributes:
        expected: the whole expectation in words, such as "a whole number of at least 1".
        holds: whether a value, already of the type, satisfies it.
    """

    expected: str
    holds: Callable[[Any], bool]


PositiveInt = Annotated[int, Bound("a whole number of at least 1", lambda value: value >= 1)]
NonNegativeInt = Annotated[int, Bound("a whole number of at least 0", lambda value: value >= 0)]
AtLeastTwo = Annotated[int, Bound("a whole number of at least 2", lambda value: value >= 2)]
PositiveFloat = Annotated[float, Bound("a finite number above 0, below 1e35", lambda value: 0 < value < 1e35)]
NonNegativeFloat = Annotated[float, Bound("a finite number of at least 0, below 1e35", lambda value: 0 <= value < 1e35)]
UnitInterval = Annotated[float, Bound("a number from 0 to below 1", lambda value: 0 <= value < 1)]
Share = Annotated[float, Bound("a number from 0 to 1", lambda value: 0 <= value <= 1)]
OpenUnitInterval = Annotated[float, Bound("a number between 0 and 1", lambda value: 0 < value < 1)]
Picture = Annotated[
    Path, Bound("a file name that ends in .png, .pdf or .svg", lambda path: path.suffix in (".png", ".pdf", ".svg"))
]


def _is_shard(text: str) -> bool:
    number, _, of = text.partition("/")
    return number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)


Shard = Annotated[str, Bound("I/N with I from 1 to N, such as 1/4", _is_shard)]

_INT64 = 1 << 63
"""What whole numbers must stay below, here as in the tensors and files that they become part of."""


class Raw(str):
    """A value as typed on the command line, to be parsed as its field's type."""


class Typed:
    """Base of a dataclass whose fields are converted to their types, or refused, whenever an object is made.

    `prefix` stands before a field's name in messages: "model." for a section, "--" for options of a verb.
    """

    _prefix: ClassVar[str] = ""

    def __init_subclass__(cls, prefix: str = "") -> None:
        super().__init_subclass__()
        cls._prefix = prefix

    def __post_init__(self) -> None:
        """Raise UserError, naming the key, the value and what was expected, for the first value of a wrong type."""
        for name, hint in hints(type(self)).items():
            object.__setattr__(self, name, convert(getattr(self, name), hint, key_of(type(self), name)))


T = TypeVar("T")


def build(cls: type[T], values: Any, prefix: str = "") -> T:
    """Make an object of a dataclass from nested plain values; `prefix` stands before the fields' names in messages.

    Raises UserError for an unknown key, a missing one, or a value that is not of its field's type.
    """
    known = hints(cls)
    if not isinstance(values, Mapping):
        found = "empty" if values is None else repr(values)
        raise UserError(f"{prefix.rstrip('.') or 'this'} is {found}; expected keys and values below it")
    for key in values:
        if key not in known:
            raise unknown_key(f"{prefix}{key}", [f"{prefix}{name}" for name in known])
    for field in fields(cls):  # type: ignore[arg-type]
        if field.name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise UserError(f"{prefix}{field.name} is missing; expected {describe(known[field.name])}")
    if issubclass(cls, Typed):  # converts its values itself
        return cls(**values)
    return cls(**{name: convert(value, known[name], f"{prefix}{name}") for name, value in values.items()})


def unknown_key(key: str, known: list[str]) -> UsageError:
    """The error for a key that does not exist, with the nearest one that does."""
    return UsageError(f"unknown option {key}{nearest(key, known)}")


def nearest(word: str, known: Sequence[str]) -> str:
    """The end of a message about a word that is none of those known."""
    near = get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def convert(value: Any, hint: Any, key: str) -> Any:
    """Convert a value (from Python, from YAML, or `Raw`) to its type: a list to a tuple, a mapping to a dataclass.

    Raises UserError, in which `key` names the value, where it is not of that type, or out of bounds.
    """
    try:
        return _convert(value, hint, key)
    except _MismatchError:
        shown = str(value) if isinstance(value, Raw) and value else repr(value)
        small = f", below {_INT64:,}" if isinstance(value, int) and abs(value) >= _INT64 else ""
        near = nearest(shown, [str(word) for word in get_args(hint)]) if get_origin(hint) is Literal else ""
        raise UserError(f"{key} is {shown}; expected {describe(hint)}{small}{near}") from None


class _MismatchError(Exception):
    """A value that is not of its type."""


def _convert(value: Any, hint: Any, key: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        converted = _convert(value, arguments[0], key)
        if all(bound.holds(converted) for bound in arguments[1:]):
            return converted
        raise _MismatchError
    if origin in (Union, UnionType):
        # Null and numbers come before text and mappings.
        for member in sorted(arguments, key=lambda member: _plain(member) is str or is_dataclass(member)):
            with suppress(_MismatchError):
                return _convert(value, member, key)
        raise _MismatchError
    if is_dataclass(hint):
        kind: Any = hint
        return value if isinstance(value, kind) else build(kind, value, getattr(hint, "_prefix", "") or f"{key}.")
    if hint in (str, Path) and isinstance(value, str | hint):
        # A shell expands ~ only at the beginning of a word, and in a file nothing does.
        return hint(os.path.expanduser(value) if str(value).startswith("~/") else value)
    if isinstance(value, Raw):
        # As YAML reads it; 64,128 is a sequence where one is expected.
        with suppress(yaml.YAMLError):
            value = yaml.safe_load(f"[{value}]" if origin in (list, tuple) and not value.startswith("[") else value)
    if origin is Literal:
        word = {True: "on", False: "off"}[value] if isinstance(value, bool) else value  # as YAML reads on and off
        if word in arguments:
            return word
    elif origin in (list, tuple) and isinstance(value, list | tuple):
        repeated = origin is list or arguments[-1:] == (...,)
        members = [arguments[0]] * len(value) if repeated else arguments
        if len(members) == len(value):
            return origin(_convert(item, member, key) for item, member in zip(value, members, strict=True))
    elif origin is dict and isinstance(value, Mapping):
        return {str(name): _convert(item, arguments[1], f"{key}.{name}") for name, item in value.items()}
    elif isinstance(hint, type) and issubclass(hint, Enum) and value in list(hint):
        return hint(value)
    elif hint is Any or (hint is NoneType and value is None):
        return value
    elif hint is bool and (isinstance(value, bool) or (type(value) is int and value in (0, 1))):
        return bool(value)
    elif hint is int and isinstance(value, int) and not isinstance(value, bool) and abs(value) < _INT64:
        return value
    elif hint is int and isinstance(value, str) and re.fullmatch(r"\d+(\.\d+)?[eE]\+?\d{1,2}", value):
        if (number := float(value)).is_integer():  # YAML reads 1e4 as text
            return int(number)
    elif hint is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        with suppress(ValueError):  # YAML reads 1e-3 as text
            if math.isfinite(number := float(value)):
                return number
    raise _MismatchError


def _plain(hint: Any) -> Any:
    """A type without its bounds."""
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def describe(hint: Any) -> str:
    """A type in words, for messages and help texts."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return str(arguments[1].expected)
    if origin in (Union, UnionType):
        return ", or ".join(describe(member) for member in arguments)
    if origin is Literal:
        return ("one of " if len(arguments) > 1 else "") + ", ".join(map(str, arguments))
    if origin in (list, tuple):
        repeated = origin is list or arguments[-1:] == (...,)
        inner = describe(arguments[0]).removeprefix("a ").removeprefix("an ")
        return f"a list, each {inner}" if repeated else f"{len(arguments)} values, each {inner}"
    words = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text", NoneType: "null"}
    return words.get(hint, "a path" if hint is Path else "keys and values below it")


def hints(cls: Any) -> dict[str, Any]:
    """Field of a dataclass -> its type."""
    return _hints(cls)


@cache
def _hints(cls: Any) -> dict[str, Any]:
    known = get_type_hints(cls, include_extras=True)
    return {field.name: known[field.name] for field in fields(cls)}


def as_typed(value: Any) -> str:
    """A plain value as users type it: null, true, 0.1, text."""
    return str(value) if isinstance(value, str | Path) else json.dumps(value, ensure_ascii=False, default=str)


def key_of(cls: type, name: str) -> str:
    """A field's name as users know it: model.width, --gpu-memory."""
    prefix = getattr(cls, "_prefix", "")
    return prefix + (name.replace("_", "-") if prefix == "--" else name)


@dataclass(frozen=True)
class Option:
    """A value that can be set: its dotted key, type, default (`MISSING`: none) and help text."""

    key: str
    hint: Any
    default: Any
    text: str


def options(cls: Any, prefix: str = "") -> Iterator[Option]:
    """All settable values of a dataclass, those of nested dataclasses included."""
    section = re.split(r"\n\s*(?:Attributes|Args):\n", inspect.getdoc(cls) or "")[-1]
    texts = {name: " ".join(text.split()) for name, text in re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", section, re.M)}
    for field in fields(cls):
        key, hint = f"{prefix}{field.name}", hints(cls)[field.name]
        if is_dataclass(hint):
            yield from options(hint, f"{key}.")
        else:
            default = field.default if field.default_factory is MISSING else field.default_factory()
            yield Option(key, hint, default, texts.get(field.name, "").rstrip("."))
