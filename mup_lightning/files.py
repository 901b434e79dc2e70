"""Files and folders: written whole or not at all, and read with one clear message for what is wrong with them."""

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import yaml

from mup_lightning.errors import UserError, located


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that, after a crash or power cut at any moment, it is the old one or the new one, whole.

    The folder is made if it is missing. Raises OSError where it cannot be written; the old file is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        with unfinished.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename in a folder durable, where the file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """`write_atomic` of a value as JSON. Raises ValueError if a number is not finite."""
    write_atomic(path, json.dumps(value, allow_nan=False, indent=1, ensure_ascii=False) + "\n")


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path, expected: str) -> Any:
    """The contents of a JSON file.

    Raises UserError where it cannot be read or is not JSON, with what was `expected` and what makes it.
    """
    try:
        return json.loads(_read(path, expected))
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}; expected {expected}") from None


class _UniqueKeyLoader(yaml.CSafeLoader):
    """A YAML loader that refuses duplicate keys, of which PyYAML silently keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                line = key.start_mark.line + 1
                if key.value in lines:
                    first = lines[key.value]
                    raise UserError(f"line {line} has the key {key.value} again (first in line {first}); merge the two")
                lines[key.value] = line
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, expected: str) -> Any:
    """The contents of a YAML file.

    Raises UserError where it cannot be read, is not UTF-8, not YAML, or has a key twice, with what was `expected`.
    """
    text = _read(path, expected)
    try:
        with located(path):
            return yaml.load(text, _UniqueKeyLoader)
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}; expected {expected}") from None


def _read(path: Path, expected: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        here = "" if path.is_absolute() or path.exists() else f" in {Path.cwd()}"
        raise UserError(f"{path} cannot be read: {error.strerror}{here}; expected {expected}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; expected {expected}") from None


def make_folder(folder: Path, option: str = "--out") -> None:
    """Make a folder that a user has named (by `option`), with its parents. Raises UserError where it cannot be made."""
    check_folder(folder, option)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made: {error.strerror}; name another folder ({option})") from None


def check_folder(folder: Path, option: str = "--out") -> None:
    """Refuse, without making anything, what `make_folder` would: before long work, and in dry runs."""
    above = folder.absolute()
    while not os.path.lexists(above):
        above = above.parent
    if not above.is_dir():
        raise UserError(f"{above} is not a folder; expected one, or a name for a new one ({option})")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"{above} is not writable; name another folder ({option})")
