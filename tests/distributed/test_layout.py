"""Layouts and owners: every number is held once, and the work is parted evenly."""

from itertools import pairwise

import pytest

from mup_lightning.distributed.layout import assign, contiguous, each_cut


def covered(layout, numbers):
    """Every number of every parameter is held by exactly one process, and no two share a place."""
    seen = {name: [0] * count for name, count in numbers.items()}
    for fragments in layout.ranks:
        places = [range(f.offset, f.offset + f.length) for f in fragments]
        assert all(a.stop <= b.start for a, b in pairwise(places))
        for fragment in fragments:
            for place in range(fragment.start, fragment.start + fragment.length):
                seen[fragment.name][place] += 1
    return all(count == 1 for counts in seen.values() for count in counts)


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_every_element_is_held_once(world_size):
    numbers, offsets, offset = {"a": 7, "b": 1, "c": 12}, {}, 0
    for name, count in numbers.items():
        offsets[name] = (offset, count)
        offset += count + 2  # padding between them
    layout = contiguous(offsets, -(-offset // world_size), world_size)
    assert covered(layout, numbers)
    assert {name: sum(counts) for name, counts in layout.held.items()} == numbers
    for row in (1, 4):
        each = each_cut({name: (count, row) for name, count in numbers.items()}, world_size)
        assert covered(each, {name: count * row for name, count in numbers.items()})
        assert each.ranks[0][0].length == -(-7 // world_size) * row


@pytest.mark.parametrize("world_size", [2, 4, 7])
def test_work_is_parted_evenly(world_size):
    costs = {index: float(1 + index % 5) for index in range(50)}
    owners = assign(costs, world_size)
    loads = [sum(cost for index, cost in costs.items() if owners[index] == rank) for rank in range(world_size)]
    assert max(loads) - min(loads) <= 5
    assert assign(dict(reversed(costs.items())), world_size) == owners


def test_matrices_stay_where_they_are_unless_one_process_would_do_more_than_its_share():
    costs = {"a": 1.0, "b": 1.0, "c": 1.0, "d": 1.0}
    at_home = {"a": [9, 0], "b": [6, 3], "c": [0, 9], "d": [2, 7]}
    assert assign(costs, 2, at_home) == {"a": 0, "b": 0, "c": 1, "d": 1}
    crowded = {key: [9, 0] for key in costs}
    assert sorted(assign(costs, 2, crowded).values()) == [0, 0, 1, 1]
