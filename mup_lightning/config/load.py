"""Parsing a `Config` from YAML files and options, the same for all verbs that take one."""

from __future__ import annotations

import re
from argparse import ArgumentError, Namespace, RawDescriptionHelpFormatter
from dataclasses import is_dataclass
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Any, get_type_hints

from jsonargparse import ArgumentParser, DefaultHelpFormatter

from mup_lightning.config.schema import Config
from mup_lightning.errors import UserError
from mup_lightning.files import read_yaml

_EXPECTED = "a recipe: sections such as model, recipe, data, trainer, with keys and values"


class _Formatter(DefaultHelpFormatter, RawDescriptionHelpFormatter):
    """Defaults are shown, and the example keeps its lines."""


def config_parser(prog: str, description: str, example: str) -> ArgumentParser:
    """A parser for a whole `Config`; see `options_parser`."""
    parser = options_parser(prog, description, example)
    parser.add_class_arguments(Config)
    return parser


def options_parser(prog: str, description: str, example: str) -> ArgumentParser:
    """A parser for sections that are still to be added: --config files and options apply from left to right.

    Args:
        prog: as in "mup-lightning train".
        description: what the verb does.
        example: a command line that works.
    """
    parser = ArgumentParser(
        prog=prog,
        usage="%(prog)s [-c FILE.yaml ...] [--section.key VALUE ...]",
        description=f"{description}\n\nexample:\n  {example}",
        formatter_class=_Formatter,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("-c", "--config", action="config", help="YAML file; may be repeated, the later one wins")
    return parser


def parse(parser: ArgumentParser, argv: list[str]) -> Namespace:
    """Parse and check types; nothing is built yet.

    Raises:
        UserError: an unknown key, a wrong type, or a file that cannot be read: naming the key and what was expected.
    """
    for path in _config_files(argv):
        _refuse_no_section(read_yaml(Path(path), _EXPECTED), Config, path)
    try:
        return parser.parse_args(argv)
    except ArgumentError as error:
        where = _guilty_file(parser, argv)
        raise UserError((f"{where}: " if where else "") + _explain(str(error), _keys(parser), parser.prog)) from error


def _refuse_no_section(content: Any, section: type, path: str, prefix: str = "") -> None:
    """jsonargparse says nothing of, or stumbles over, what is no mapping where a section should be."""
    if not isinstance(content, dict):
        found = "empty" if content is None else repr(content)
        if not prefix:
            raise UserError(f"{path} is {found}; expected {_EXPECTED}")
        raise UserError(f"{path}: {prefix.rstrip('.')} is {found}; expected keys and values below it")
    for key, kind in get_type_hints(section).items():
        if is_dataclass(kind) and key in content:
            assert isinstance(kind, type)
            _refuse_no_section(content[key], kind, path, f"{prefix}{key}.")


def _guilty_file(parser: ArgumentParser, argv: list[str]) -> str | None:
    """Which of several config files cannot be parsed, if it is a file at all."""
    without = _complaint(parser, [])  # of an option that has to be given
    return next((path for path in _config_files(argv) if _complaint(parser, ["-c", path]) not in (None, without)), None)


def _complaint(parser: ArgumentParser, argv: list[str]) -> str | None:
    try:
        parser.parse_args(argv)
    except ArgumentError as error:
        return str(error)
    return None


def _config_files(argv: list[str]) -> list[str]:
    """All files of -c and --config."""
    after = [path for flag, path in pairwise(argv) if flag in ("-c", "--config")]
    joined = [re.fullmatch(r"(?:--config=|-c=?)(.+)", item) for item in argv]
    return after + [match[1] for match in joined if match]


def build(parser: ArgumentParser, arguments: Namespace) -> Config:
    """The Config of parsed arguments, checked as a whole."""
    values = parser.instantiate_classes(arguments)
    return Config(**{key: values[key] for key in Config.__dataclass_fields__})


def _keys(parser: ArgumentParser) -> list[str]:
    return [action.dest for action in parser._actions if "." in action.dest or action.dest == "seed"]


def _explain(message: str, keys: list[str], prog: str) -> str:
    """Say jsonargparse's message in a user's words, with the nearest known key for an unknown one."""
    message = re.sub(r"<class '(\w+)'>", r"\1", message)
    message = re.sub(r"typing\.Literal\[([^]]*)\]", lambda m: "one of " + m[1].replace("'", ""), message)
    message = (
        re.sub(r"\s*\n\s*", " ", message)
        .replace("Parser key ", "option ")
        .replace("Expected a one of", "Expected one of")
    )
    unknown = re.search(r"unrecognized arguments: (?:--)?([\w.]+)|[Oo]ption '([\w.]+)'(?: is not accepted)?$", message)
    if unknown:
        name = next(part for part in unknown.groups() if part)
        near = get_close_matches(name, keys, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        return f"unknown option {name}; {hint}{prog} --help lists all options"
    return message
