"""Exact duplicates among documents, found by a hash of their text; and what is kept of each document for a join."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

RECORDS = "documents.bin"
RECORD = np.dtype([("hash", "<u8"), ("sections", "<u4", 2), ("text_bytes", "<u8", 2)])
"""Of a document that is kept: the first 8 bytes of its BLAKE2b, and of each split its sections and their bytes."""


def hashes_of(texts: Sequence[str]) -> np.ndarray:
    """64 bits of each text: two different ones among 10 million are taken for copies with probability 3e-6."""
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, dtype="<u8")


class Seen:
    """The hashes of all documents so far: 8 bytes each, 16 while sorted runs of them are merged."""

    def __init__(self, hashes: np.ndarray) -> None:
        self._runs = [np.sort(hashes)] if len(hashes) else []

    def new(self, hashes: np.ndarray) -> np.ndarray:
        """Which of them are the first of their kind, of all that this was ever asked: bool, of the same length."""
        fresh = np.zeros(len(hashes), dtype=bool)
        fresh[np.unique(hashes, return_index=True)[1]] = True
        for run in self._runs:
            fresh &= run[np.minimum(np.searchsorted(run, hashes), len(run) - 1)] != hashes
        if fresh.any():
            self._runs.append(np.sort(hashes[fresh]))
        while len(self._runs) > 1 and len(self._runs[-2]) <= 2 * len(self._runs[-1]):
            merged = np.concatenate([self._runs.pop(), self._runs.pop()])
            merged.sort(kind="stable")  # which merges runs
            self._runs.append(merged)
        return fresh


def open_records(folder: Path, count: int) -> tuple[BinaryIO, Seen]:
    """The file of records in a folder, of which the first `count` are kept from an earlier writer, and their hashes."""
    file = (folder / RECORDS).open("ab")
    file.truncate(count * RECORD.itemsize)
    file.seek(0, os.SEEK_END)
    return file, Seen(read_records(folder)["hash"].copy())


def read_records(folder: Path) -> np.ndarray:
    """All records of a folder, memory-mapped; none where it has no file of them, or an empty one."""
    path = folder / RECORDS
    return np.memmap(path, RECORD, "r") if path.is_file() and path.stat().st_size else np.empty(0, RECORD)
