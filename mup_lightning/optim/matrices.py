"""Parameters as whole-matrix rules see them: the blocks of each apart, and equal shapes together in one batch.

Shapes: k blocks of one parameter (3 for a fused QKV), b matrices in a batch, r rows, s columns.
"""

from __future__ import annotations

from collections import defaultdict

import torch

from mup_lightning.optim.rule import Item

_CHUNK_NUMBERS = {"cpu": 1 << 19}
"""Numbers in one batch of matrices at most, so that a step makes little: 64 MB of float32 on a GPU.

All that a step makes together is at most three times its batch (see `newton_schulz`).

On CPU 2 MB, about what a core's cache holds: larger batches were up to 8 % slower on one thread. Smaller ones, of less
than two fused QKVs of width 256, were slower on two.
"""
_CHUNK_NUMBERS_ELSEWHERE = 1 << 24


def part(tensor: torch.Tensor, blocks: int) -> torch.Tensor:
    """A (k·r, s) tensor's blocks as a (k, r, s) view."""
    return tensor.unflatten(0, (blocks, -1))


def equal_shapes(items: list[Item]) -> list[list[Item]]:
    """Sort items into batches of equal device, dtype and block shape, none much larger than `_CHUNK_NUMBERS`."""
    alike: dict[tuple[torch.device, torch.dtype, int, int], list[Item]] = defaultdict(list)
    for item in items:
        rows, columns = item.parameter.shape[0] // item.blocks, item.parameter.shape[1]
        alike[item.parameter.device, item.parameter.dtype, rows, columns].append(item)
    batches = []
    for (device, *_), same in alike.items():
        most = _CHUNK_NUMBERS.get(device.type, _CHUNK_NUMBERS_ELSEWHERE)
        size = max(1, most // max(item.parameter.numel() for item in same))
        batches += [same[start : start + size] for start in range(0, len(same), size)]
    return batches


def room(items: list[Item], dtype: torch.dtype) -> torch.Tensor:
    """Memory for all blocks of a batch: (b, r, s), not filled."""
    first = part(items[0].parameter, items[0].blocks)
    return first.new_empty(sum(item.blocks for item in items), *first.shape[1:], dtype=dtype)


def per_item(matrices_b: torch.Tensor, items: list[Item]) -> tuple[torch.Tensor, ...]:
    """(b, ...) -> views of (k, ...), one per item."""
    return matrices_b.split([item.blocks for item in items])


def arithmetic(name: str, device: torch.device, own: torch.dtype) -> torch.dtype:
    """The dtype to iterate in: `auto` is bfloat16 on GPU and float32 elsewhere; float64 parameters keep float64."""
    if name == "bfloat16" or (name == "auto" and device.type == "cuda"):
        return torch.bfloat16
    return torch.promote_types(own, torch.float32)
