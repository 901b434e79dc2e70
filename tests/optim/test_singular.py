"""The largest singular pair against the SVD, and roots of functions whose roots are known."""

import numpy as np
import pytest
import torch

from mup_lightning.optim.singular import leading, root
from tests.optim.test_rules import normal


@pytest.mark.parametrize("shape", [(8, 8), (40, 20), (20, 40), (1, 6), (6, 1)])
def test_leading_singular_pair(shape):
    w = normal(3, *shape) * np.array([1.0, 1e-30, 0.0])[:, None, None]
    norm, u_found, v_found = leading(torch.tensor(w, dtype=torch.float64))
    theta = u_found @ v_found.mT
    u, s, vt = np.linalg.svd(w)
    assert np.allclose(norm[:, 0, 0], s[:, 0], rtol=1e-9, atol=0)
    for i in range(2):
        assert np.abs(theta[i].numpy() - np.outer(u[i, :, 0], vt[i, 0])).max() < 1e-9
    assert not theta[2].any()
    small, _, _ = leading(torch.tensor(w, dtype=torch.float32))
    assert np.allclose(small[:, 0, 0], s[:, 0], rtol=1e-5, atol=0)


TARGETS = torch.tensor([0.3, -0.7, 40.0, 0.0, 1e-5], dtype=torch.float64)
STEEPNESS = torch.tensor([1.0, 3.0, 0.1, 1.0, 1e4], dtype=torch.float64)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.tanh(STEEPNESS * (x - TARGETS)),
        lambda x: torch.expm1(9 * (x - 0.9)),
        lambda x: (x - 0.3) ** 3,
    ],
    ids=["far and near and steep", "one end that would stay", "flat"],
)
def test_roots_are_found_in_few_evaluations(function):
    calls = []

    def counted(x):
        calls.append(x)
        return function(x)

    found = root(counted, torch.zeros(5, dtype=torch.float64), 1e-9)
    assert function(found).abs().max() <= 1e-9
    assert len(calls) < 25
