"""Batches of matrices."""

import pytest
import torch

from mup_lightning.optim.matrices import equal_shapes
from mup_lightning.optim.rule import Item


def items(device, *shapes, blocks=1):
    return [Item(torch.empty(shape, device=device), torch.empty(0), {}, blocks) for shape in shapes]


@pytest.mark.parametrize(("device", "sizes"), [("cpu", [2, 2, 1]), ("meta", [5])])
def test_batches_on_cpu_are_as_small_as_its_cache(device, sizes):
    """Two matrices of a megabyte; elsewhere, as on a GPU, up to 64 megabytes."""
    assert [len(batch) for batch in equal_shapes(items(device, *[(512, 512)] * 5))] == sizes


def test_a_matrix_larger_than_a_batch_comes_alone():
    assert [len(batch) for batch in equal_shapes(items("cpu", (1024, 1024), (1024, 1024)))] == [1, 1]


def test_blocks_of_equal_shape_share_a_batch():
    """A fused QKV and a square projection; never two dtypes, or two shapes."""
    mixed = [*items("cpu", (24, 8), blocks=3), *items("cpu", (8, 8)), *items("cpu", (24, 8))]
    mixed.append(Item(torch.empty(8, 8, dtype=torch.float64), torch.empty(0), {}, 1))
    assert [[item.blocks for item in batch] for batch in equal_shapes(mixed)] == [[3, 1], [1], [1]]
