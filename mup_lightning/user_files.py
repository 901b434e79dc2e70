"""A user's YAML files and folders: what PyYAML passes over, or a traceback would say, is a UserError here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from mup_lightning.errors import UserError


class _OneOfEachKey(yaml.CSafeLoader):
    """A second value of a key would replace the first one unseen, and with it all that stands below it."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                line = key.start_mark.line + 1
                if key.value in lines:
                    raise UserError(
                        f"line {line} has the key {key.value} a second time (first in line {lines[key.value]}), which "
                        f"would replace all that the first one says; make one of the two"
                    )
                lines[key.value] = line
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, expected: str) -> Any:
    """The contents of a YAML file.

    Args:
        path: of the file.
        expected: what it should be, for the messages, such as "a sweep file, see recipes/experiment/".

    Raises:
        UserError: it cannot be read, is not UTF-8, no YAML, or has a key twice.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _OneOfEachKey)
    except OSError as error:
        here = "" if path.is_absolute() or path.exists() else f" in {Path.cwd()}"
        raise UserError(f"{path} cannot be read: {error.strerror}{here}; expected {expected}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is no text in UTF-8; expected {expected}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is no YAML: {' '.join(str(error).split())}; expected {expected}") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def make_folder(folder: Path, option: str = "--out") -> None:
    """Make a folder that a user has named, with all above it, where it is missing.

    Args:
        folder: to make.
        option: by which another one is named.

    Raises:
        UserError: it cannot be made.
    """
    check_folder(folder, option)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made: {error.strerror}; name another folder ({option})") from None


def check_folder(folder: Path, option: str = "--out") -> None:
    """What `make_folder` would say, as far as it can be known without making anything: before long work, in dry runs.

    Raises:
        UserError: it cannot be made.
    """
    above = folder.absolute()
    while not os.path.lexists(above):
        above = above.parent
    if not above.is_dir():
        raise UserError(f"{above} is no folder; expected one, or a name for a new one ({option})")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"nothing may be written into {above}; name another folder ({option})")
