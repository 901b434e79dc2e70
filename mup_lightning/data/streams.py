"""Local files as raw bytes, whatever they are compressed with, one record a line or a file."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

COMPRESSED = (".xz", ".gz", ".zst", ".bz2")


def open_binary(path: str | Path) -> BinaryIO:
    """Open a file for reading bytes, decompressing by its ending (.xz, .gz, .bz2, .zst; others are taken as they are).

    A truncated or damaged file raises when it is read (EOFError, LZMAError, OSError).
    """
    suffix = Path(path).suffix
    if suffix == ".xz":
        return cast(BinaryIO, lzma.open(path, "rb"))
    if suffix == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    if suffix == ".bz2":
        return cast(BinaryIO, bz2.open(path, "rb"))
    if suffix == ".zst":  # not in the standard library before Python 3.14, but in pyarrow, which datasets needs
        import pyarrow  # type: ignore[import-untyped]

        return cast(BinaryIO, io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd")))
    return open(path, "rb")


def records(files: list[str], by_line: bool) -> Iterator[dict[str, Any]]:
    """The records of `files` in order, as {"bytes": ...}: lines without their end, or whole files with LF line ends."""
    for path in files:
        with open_binary(path) as file:
            if by_line:
                for line in file:
                    yield {"bytes": line.removesuffix(b"\n").removesuffix(b"\r")}
            else:
                yield {"bytes": file.read().replace(b"\r\n", b"\n")}
