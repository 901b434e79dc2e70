"""Pieces of parameters for elementwise rules."""

import pytest
import torch

from mup_lightning.optim import pieces as module
from mup_lightning.optim.pieces import pieces


@pytest.mark.parametrize(("shape", "rows"), [((7, 4), [2, 2, 2, 1]), ((3, 20), [1, 1, 1]), ((11,), [8, 3])])
def test_pieces_are_views_of_all_rows(shape, rows, monkeypatch):
    monkeypatch.setitem(module._PIECE_NUMBERS, "cpu", 8)
    one, two = torch.zeros(shape), torch.randn(shape)
    found = list(pieces(one, two))
    for a, b in found:
        a.copy_(b)
    assert [len(a) for a, _ in found] == rows
    assert torch.equal(one, two)
