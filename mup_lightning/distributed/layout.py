"""Where the elements of parameters are when processes share them: ZeRO's flat tensors, and who owns which matrix."""

from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch

Key = TypeVar("Key", int, str)


@dataclass(frozen=True)
class Fragment:
    """Consecutive elements of one parameter, as one process holds them.

    Attributes:
        name: the parameter's.
        start: of the first element in the flattened parameter.
        length: how many.
        offset: of the first element in the process's flat tensor.
    """

    name: str
    start: int
    length: int
    offset: int

    def of_flat(self, flat: torch.Tensor) -> torch.Tensor:
        """The fragment as a view of the process's flat tensor."""
        return flat[self.offset : self.offset + self.length]

    def of_whole(self, whole: torch.Tensor) -> torch.Tensor:
        """The fragment as a view of the flattened parameter."""
        return whole[self.start : self.start + self.length]


@dataclass(frozen=True)
class Layout:
    """How the parameters of one group are spread over the processes' flat tensors.

    Attributes:
        ranks: for every process, its fragments in order of their offsets. What they leave out of a flat tensor is
            padding.
    """

    ranks: tuple[tuple[Fragment, ...], ...]

    @cached_property
    def pieces(self) -> dict[str, list[list[Fragment]]]:
        """Parameter -> its fragments in each process."""
        pieces: dict[str, list[list[Fragment]]] = {}
        for rank, fragments in enumerate(self.ranks):
            for fragment in fragments:
                pieces.setdefault(fragment.name, [[] for _ in self.ranks])[rank].append(fragment)
        return pieces

    @cached_property
    def held(self) -> dict[str, list[int]]:
        """Parameter -> how many of its elements each process holds."""
        return {name: [sum(f.length for f in mine) for mine in ranks] for name, ranks in self.pieces.items()}


def contiguous(offsets: dict[str, tuple[int, int]], size: int, world_size: int) -> Layout:
    """All parameters one after another, by their (offset, numel), cut into partitions of `size`, as ZeRO 1 and 2 do."""
    ranks = []
    for rank in range(world_size):
        begin, end = rank * size, (rank + 1) * size
        fragments = []
        for name, (offset, numel) in offsets.items():
            first, last = max(begin, offset), min(end, offset + numel)
            if first < last:
                fragments.append(Fragment(name, first - offset, last - first, first - begin))
        ranks.append(tuple(sorted(fragments, key=lambda fragment: fragment.offset)))
    return Layout(tuple(ranks))


def each_cut(rows: dict[str, tuple[int, int]], world_size: int) -> Layout:
    """Every parameter, in order, cut into equal partitions of its own; the last ones may be short.

    Args:
        rows: parameter -> its rows and the elements of one, for FSDP, which cuts between rows; for ZeRO 3 every element
            is a row.
        world_size: processes.
    """
    ranks = []
    for rank in range(world_size):
        fragments, offset = [], 0
        for name, (count, row) in rows.items():
            size = -(-count // world_size) * row
            length = min(size, count * row - rank * size)
            if length > 0:
                fragments.append(Fragment(name, rank * size, length, offset))
            offset += size
        ranks.append(tuple(fragments))
    return Layout(tuple(ranks))


def assign(costs: dict[Key, float], world_size: int, held: dict[Key, list[int]] | None = None) -> dict[Key, int]:
    """Choose who works on which matrix, the same on all processes.

    The most expensive come first. Each goes to the process that holds most of it (`Layout.held`; None where all hold
    everything), unless that one has its share of the cost already; then to the one with the least to do. Returns matrix
    -> rank of its owner.
    """
    share = sum(costs.values()) / world_size
    loads = [0.0] * world_size
    owners: dict[Key, int] = {}
    for name in sorted(costs, key=lambda name: (-costs[name], name)):
        owner = min(range(world_size), key=lambda rank: (loads[rank], rank))
        if held is not None:
            home = max(range(world_size), key=lambda rank: (held[name][rank], -rank))
            if loads[home] + costs[name] / 2 <= share:
                owner = home
        owners[name] = owner
        loads[owner] += costs[name]
    return owners
