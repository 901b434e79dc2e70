"""Files and folders: written whole or not at all, and read with one clear message for what is wrong with them."""

import contextlib
import errno
import hashlib
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any, BinaryIO

import yaml
from filelock import SoftFileLease, Timeout

from mup_lightning.errors import Busy, UserError, located

SILENCE = 60.0
"""Seconds without a sign of life after which a writer on another machine is taken for dead."""

BEAT = 2.0
"""Seconds between two signs of life of a writer."""

_OWN_HASH = "sha256"
"""Key of a JSON file's own hash: of the value without it, with sorted keys."""

FAILING_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
"""What writing answers where a disk is full, read-only or broken; the error does not always name the file."""

_NO_SYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)
"""What fsync answers where a file system has none: of folders on CIFS, of anything on some FUSE."""


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that, after a crash or power cut at any moment, it is the old one or the new one, whole.

    The folder is made if it is missing. Raises OSError where it cannot be written; the old file is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        with unfinished.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            sync(file)
        unfinished.replace(path)
    except BaseException as error:
        if isinstance(error, OSError) and error.errno and error.filename is None:
            error.filename = str(path)
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync(file: BinaryIO) -> None:
    """Force an open file to the disk, where the file system can. Raises OSError where that fails."""
    file.flush()
    _fsync(file.fileno(), file.name)


def sync_folder(folder: Path) -> None:
    """Make a rename in a folder durable, where the file system can. Raises OSError where that fails."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # a folder may be open to writers but not to readers
        return
    try:
        _fsync(descriptor, folder)
    finally:
        os.close(descriptor)


def _fsync(descriptor: int, name: object) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
        warn_once(name, f"this file system does not force data to the disk ({error.strerror}); going on without")


def write_json(path: Path, value: Any) -> None:
    """`write_atomic` of a value as JSON, with its own sha256 if it is a dictionary.

    Raises ValueError if a number is not finite.
    """
    if isinstance(value, dict):
        value = value | {_OWN_HASH: json_sha256(value)}
    write_atomic(path, json.dumps(value, allow_nan=False, indent=1, ensure_ascii=False) + "\n")


def yaml_text(value: Any, comment: str = "") -> str:
    """A value as YAML whose first line holds the sha256 of the rest, which begins with the comment."""
    rest = comment + yaml.safe_dump(value, sort_keys=False)
    return f"# sha256 of the rest (delete this line if you edit it): {_hash(rest)}\n{rest}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def json_sha256(value: Any) -> str:
    """The sha256, in hexadecimal digits, of a value as JSON with sorted keys; ValueError for numbers not finite."""
    return _hash(json.dumps(value, allow_nan=False, sort_keys=True))


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_sums(folder: Path, sums: dict[str, str]) -> None:
    """Write name -> sha256 of files in a folder into its SHA256SUMS, which `sha256sum -c SHA256SUMS` compares."""
    write_atomic(folder / "SHA256SUMS", "".join(f"{digest}  {name}\n" for name, digest in sums.items()))


def differs(path: Path) -> bool:
    """Whether a file is not the one that SHA256SUMS in its folder speaks of; False where there is none."""
    sums = path.with_name("SHA256SUMS")
    lines = read_text(sums, "lines of sha256sum").splitlines() if sums.is_file() else []
    known = [line.split("  ")[0] for line in lines if line.endswith(f"  {path.name}")]
    return bool(known) and known != [file_sha256(path)]


def read_json(path: Path, expected: str) -> Any:
    """The contents of a JSON file.

    Raises UserError where it cannot be read, is not JSON, or not what `write_json` wrote, with what was `expected` and
    what makes it.
    """
    try:
        value = json.loads(read_text(path, expected))
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}; expected {expected}") from None
    if isinstance(value, dict) and (known := value.pop(_OWN_HASH, None)) and known != json_sha256(value):
        raise UserError(
            f"{path} is damaged: it has other content than was written (sha256 differs); expected {expected}"
        )
    return value


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

    Raises UserError where it cannot be read, is not UTF-8, not YAML, not what `yaml_text` made, or has a key twice, and
    says what was `expected`.
    """
    text = read_text(path, expected)
    first, _, rest = text.partition("\n")
    if (known := re.fullmatch(r"# sha256 of the rest.*: ([0-9a-f]{64})", first)) and known[1] != _hash(rest):
        raise UserError(
            f"{path} was changed after it was written: line 1 holds the sha256 of the rest, which differs; if you have "
            f"edited it, delete line 1, otherwise it is damaged"
        )
    try:
        with located(path):
            return yaml.load(text, _UniqueKeyLoader)
    except yaml.YAMLError as error:
        where = " ".join(str(error).replace('in "<unicode string>",', "at").split())
        raise UserError(f"{path} is not valid YAML: {where}; expected {expected}") from None


def read_text(path: Path, expected: str) -> str:
    """The contents of a file in UTF-8. Raises UserError, with what was `expected`, where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        here = "" if path.is_absolute() or path.exists() else f" in {Path.cwd()}"
        raise UserError(f"{path} cannot be read: {error.strerror}{here}; expected {expected}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; expected {expected}") from None


_said: set[str] = set()


def warn_once(place: object, text: str) -> None:
    """Say on stderr what is odd about a file system but threatens no data: once in a process, of the first place."""
    if text not in _said:
        _said.add(text)
        print(f"warning: {place}: {text}", file=sys.stderr, flush=True)


def make_folder(folder: Path, option: str = "--out") -> None:
    """Make a folder that a user has named (by `option`), with its parents. Raises UserError where it cannot be made."""
    check_folder(folder, option)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made: {error.strerror}; name another folder ({option})") from None


def check_folder(folder: Path, option: str = "--out") -> None:
    """Refuse, without making anything, what `make_folder` would: before long work, and in dry runs."""
    above = next(filter(os.path.lexists, (folder.absolute(), *folder.absolute().parents)))
    if not above.is_dir():
        raise UserError(f"{above} is not a folder; expected one, or a name for a new one ({option})")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"{above} is not writable; name another folder ({option})")


class OneWriter:
    """A context in which this process is the only one that writes something.

    Its file, there while it is held, says who holds it (machine, process, start of the process), and is touched every
    `BEAT` seconds. A holder that was killed is replaced: at once on its own machine, from another one when the file has
    not been touched for `SILENCE` seconds. Asks the file system for no locks: network file systems may have none.

    Args:
        file: of the lock; its folder exists.
        what: is written, for messages.
        wait: for a living holder to end, rather than refuse.
    """

    def __init__(self, file: Path, what: str, *, wait: bool = False) -> None:
        self.file, self.what, self.wait = file, what, wait
        self._lease = SoftFileLease(file, lease_duration=SILENCE, heartbeat_interval=BEAT)

    def __enter__(self) -> None:
        """Raises Busy where a living process holds it, UserError where the file cannot be written."""
        seen: set[int] = set()

        def lives() -> bool:
            status = None
            with contextlib.suppress(OSError):
                status = self.file.stat()
                seen.add(status.st_mtime_ns)
            if len(seen) == 1 and time.monotonic() - begin > 3 * BEAT:
                warn_once(self.file, f"waiting, at most {SILENCE:.0f} s, to see whether {self._holder()} still lives")
            empty = status is not None and not status.st_size and len(seen) == 1
            return (len(seen) > 1 and not self.wait) or (empty and time.monotonic() - begin > 5 * BEAT)

        while True:
            seen.clear()
            begin = time.monotonic()
            try:
                self._lease.acquire(timeout=2 * SILENCE, poll_interval=0.1, cancel_check=lives)
                return
            except Timeout:
                if len(seen) > 1 and self.wait:
                    continue
                if len(seen) > 1 or self.file.stat().st_size:
                    raise self._busy() from None
                self._lease.force_break()  # empty: its process died, or the machine, before it wrote a word
            except OSError as error:
                raise UserError(f"{self.file} cannot be written: {error.strerror}") from None

    def __exit__(self, *_: object) -> None:
        self._lease.release()

    def check(self) -> None:
        """Raise Busy if another process has taken over, which happens where this one was suspended."""
        owner = self._lease.owner
        if owner and owner.token != self._lease.token:
            raise self._busy()
        if owner is None or self._lease.compromise:  # somebody has deleted the file, or it was out of reach
            self._lease.release()
            self.__enter__()

    def _busy(self) -> Busy:
        return Busy(f"{self.what} is being written by {self._holder()}; wait for it, or end it")

    def _holder(self) -> str:
        owner = self._lease.owner
        return f"process {owner.pid} on {owner.hostname}" if owner else "another process"
