"""Where the numbers of the parameters lie when processes share them: ZeRO's flat tensors, and who owns which matrix."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

Key = TypeVar("Key", int, str)


@dataclass(frozen=True)
class Fragment:
    """Consecutive numbers of one parameter, as one process holds them.

    Attributes:
        name: the parameter's.
        start: of the first number in the flattened parameter.
        length: how many.
        offset: of the first number in the process's flat tensor.
    """

    name: str
    start: int
    length: int
    offset: int


@dataclass(frozen=True)
class Layout:
    """How the parameters of one group are spread over the processes' flat tensors.

    Attributes:
        ranks: for every process, its fragments in order of their offsets. What they leave out of a flat tensor is
            padding.
    """

    ranks: tuple[tuple[Fragment, ...], ...]

    @cached_property
    def held(self) -> dict[str, list[int]]:
        """Parameter -> how many of its numbers each process holds."""
        held: dict[str, list[int]] = {}
        for rank, fragments in enumerate(self.ranks):
            for fragment in fragments:
                held.setdefault(fragment.name, [0] * len(self.ranks))[rank] += fragment.length
        return held

    @cached_property
    def pieces(self) -> dict[str, list[list[Fragment]]]:
        """Parameter -> its fragments in each process."""
        pieces: dict[str, list[list[Fragment]]] = {}
        for rank, fragments in enumerate(self.ranks):
            for fragment in fragments:
                pieces.setdefault(fragment.name, [[] for _ in self.ranks])[rank].append(fragment)
        return pieces


def contiguous(offsets: dict[str, tuple[int, int]], size: int, world_size: int) -> Layout:
    """All parameters one after another, cut into equal parts, as ZeRO 1 and 2 do.

    Args:
        offsets: parameter -> its (offset, numbers) in the whole.
        size: of one process's part.
        world_size: processes.
    """
    ranks = []
    for rank in range(world_size):
        begin, end = rank * size, (rank + 1) * size
        fragments = []
        for name, (offset, numbers) in offsets.items():
            first, last = max(begin, offset), min(end, offset + numbers)
            if first < last:
                fragments.append(Fragment(name, first - offset, last - first, first - begin))
        ranks.append(tuple(sorted(fragments, key=lambda fragment: fragment.offset)))
    return Layout(tuple(ranks))


def each_cut(numbers: dict[str, int], world_size: int) -> Layout:
    """Every parameter cut into equal parts of its own, as ZeRO 3 does; the last part may be short.

    Args:
        numbers: parameter -> its numbers, in their order in the flat tensors.
        world_size: processes.
    """
    ranks = []
    for rank in range(world_size):
        fragments, offset = [], 0
        for name, count in numbers.items():
            part = -(-count // world_size)
            length = min(part, count - rank * part)
            if length > 0:
                fragments.append(Fragment(name, rank * part, length, offset))
            offset += part
        ranks.append(tuple(fragments))
    return Layout(tuple(ranks))


def assign(costs: dict[Key, float], world_size: int, held: dict[Key, list[int]] | None = None) -> dict[Key, int]:
    """Choose who works on which matrix: equal shares of the cost, and where that allows it, where the numbers are.

    The dearest come first. Each goes to the process that holds most of it, unless that one has its share already; then
    to the one with the least to do. The same on all processes.

    Args:
        costs: matrix -> cost.
        world_size: processes.
        held: see `Layout.held`; None where all processes hold everything.

    Returns:
        Matrix -> rank of its owner.
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
