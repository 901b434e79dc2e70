"""Tensors in files of the safetensors format: written in one pass with their hash, read in slices.

Written by hand, because the library first copies all tensors into one more piece of memory, and does not hash. Read by
the library. No pickle: loading runs no code.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

_NAMES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64"}


def write(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> dict[str, Any]:
    """Write tensors, one after another, and force them to disk.

    Args:
        path: of the file.
        tensors: on any device; each is copied to the CPU when its turn comes.
        metadata: words about the whole file.

    Returns:
        {"bytes", "sha256"} of the file.
    """
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for key, tensor in tensors.items():
        end = offset + tensor.numel() * tensor.element_size()
        header[key] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for piece in (len(text).to_bytes(8, "little"), text):
            file.write(piece)
            digest.update(piece)
        for tensor in tensors.values():
            numbers = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
            file.write(numbers.data)
            digest.update(numbers.data)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": 8 + len(text) + offset, "sha256": digest.hexdigest()}


class TensorFiles:
    """Several files as one collection; keys are of all of them together.

    Args:
        paths: of the files.
    """

    def __init__(self, paths: list[Path]) -> None:
        self._files = [safe_open(path, framework="pt") for path in paths]
        self._place = {key: file for file in self._files for key in file.keys()}  # noqa: SIM118

    def keys(self) -> list[str]:
        """Of all tensors."""
        return list(self._place)

    def shape(self, key: str) -> list[int]:
        """Of one tensor, unread."""
        return list(self._place[key].get_slice(key).get_shape())

    def read(self, key: str) -> torch.Tensor:
        """One whole tensor."""
        return self._place[key].get_tensor(key)

    def read_part(self, key: str, start: int, end: int) -> torch.Tensor:
        """A part of a one-dimensional tensor; nothing else is read."""
        return self._place[key].get_slice(key)[start:end]
