"""Who runs what: several sweeps may work in one folder at once, and no configuration is run twice at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mup_lightning.errors import UserError
from mup_lightning.files import make_folder

_TABLE = 1 << 61
"""The byte that stands for the table; configurations are below it."""


class Locks:
    """Locks on single bytes of FOLDER/sweep.lock, one for the table and one for each configuration's hash.

    POSIX record locks, because the kernel gives them back when their holder dies, however it dies: nothing stale can
    stay behind. They hold between the machines of a cluster where its file system has locks (NFS 4, Lustre, GPFS). The
    bytes need not exist.

    Args:
        folder: of the sweep; made where it is missing.
    """

    def __init__(self, folder: Path) -> None:
        make_folder(folder)
        self.path = folder / "sweep.lock"
        # One descriptor for the process's life: closing any of a file's descriptors gives back all of its locks.
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)

    def claim(self, name: str) -> bool:
        """Whether the configuration with this hash is now ours to run; False where another sweep is running it."""
        try:
            self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB, _byte(name))
        except (BlockingIOError, PermissionError):
            return False
        return True

    def give_back(self, name: str) -> None:
        """Let others run it: it is in the table, or has failed."""
        self._lock(fcntl.LOCK_UN, _byte(name))

    @contextmanager
    def table(self) -> Iterator[None]:
        """Alone with the table, for as long as a row takes to write."""
        self._lock(fcntl.LOCK_EX, _TABLE)
        try:
            yield
        finally:
            self._lock(fcntl.LOCK_UN, _TABLE)

    def _lock(self, operation: int, byte: int) -> None:
        try:
            fcntl.lockf(self._file, operation, 1, byte)
        except (BlockingIOError, PermissionError):
            raise
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be locked ({error.strerror}); choose a folder (--out) on a disk with file locks"
            ) from error


def _byte(name: str) -> int:
    return int(name[:15], 16)  # 60 bits: below _TABLE
