"""Where DeepSpeed's ZeRO has put the numbers of every parameter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from mup_lightning.distributed.layout import Layout, contiguous, each_cut


def layouts(wrapped: Any, names: dict[int, str], stage: int, world_size: int) -> Iterator[tuple[torch.Tensor, Layout]]:
    """The flat tensors that DeepSpeed hands to the optimizer, and what they are made of.

    Args:
        wrapped: DeepSpeed's optimizer of stage 1, 2 or 3.
        names: id of a parameter -> its name.
        stage: of ZeRO.
        world_size: processes.

    Raises:
        RuntimeError: what lies there is not what it should be: another version of DeepSpeed lays it out otherwise.
    """
    if stage == 3:
        for flat, group in zip(wrapped.fp32_partitioned_groups_flat, wrapped.fp16_groups, strict=True):
            layout = each_cut({names[id(parameter)]: parameter.ds_numel for parameter in group}, world_size)
            offsets = {names[id(parameter)]: parameter.ds_tensor for parameter in group}
            _check(flat, layout, {name: part.flatten() for name, part in offsets.items()}, from_start=False)
            yield flat, layout
        return
    for index, flat in enumerate(wrapped.single_partition_of_fp32_groups):
        group, offsets = wrapped.round_robin_bit16_groups[index], wrapped.round_robin_bit16_offsets[index]
        places = {
            names[id(parameter)]: (offset, parameter.numel()) for parameter, offset in zip(group, offsets, strict=True)
        }
        layout = contiguous(places, wrapped.partition_size[index], world_size)
        _check(
            flat, layout, {names[id(parameter)]: parameter.detach().flatten() for parameter in group}, from_start=True
        )
        yield flat, layout


def _check(flat: torch.Tensor, layout: Layout, parameters: dict[str, torch.Tensor], *, from_start: bool) -> None:
    """Compare a flat tensor with the parameters (from_start), or with this process's parts of them."""
    rank = torch.distributed.get_rank()
    for fragment in layout.ranks[rank]:
        held = flat.detach()[fragment.offset : fragment.offset + fragment.length]
        start = fragment.start if from_start else 0
        if not torch.equal(held, parameters[fragment.name][start : start + fragment.length].to(held)):
            raise RuntimeError(
                f"DeepSpeed has not put {fragment.name} where this version expects it; install the pinned deepspeed"
            )
