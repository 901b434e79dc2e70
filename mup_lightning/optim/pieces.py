"""Parameters as elementwise rules see them: piece by piece, so that what a step makes stays small."""

from __future__ import annotations

from collections.abc import Iterator

import torch

_PIECE_NUMBERS = {"cpu": 1 << 18}
"""Numbers in a piece at most: 1 MB of float32 on CPU, the quickest of 0.1 to 2 MB on one thread, and 64 MB on a GPU."""
_PIECE_NUMBERS_ELSEWHERE = 1 << 24


def piece_numbers(device: torch.device) -> int:
    """Numbers in one piece at most."""
    return _PIECE_NUMBERS.get(device.type, _PIECE_NUMBERS_ELSEWHERE)


def pieces(*tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Views of the same rows of tensors of one shape, as many rows as fit a piece but one at least."""
    first = tensors[0]
    rows = max(1, piece_numbers(first.device) // max(1, first[0].numel()))
    return zip(*(tensor.split(rows) for tensor in tensors), strict=True)
