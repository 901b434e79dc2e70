"""Newton-Schulz: what it does to singular values and vectors, and what rounding does to it."""

import numpy as np
import pytest
import torch

from mup_lightning.optim.newton_schulz import iterate, orthogonalise
from mup_lightning.optim.sso import POLAR_EXPRESS
from tests.optim.references import QUINTIC, newton_schulz
from tests.optim.test_rules import normal

COEFFICIENTS = QUINTIC[0]


def test_singular_values_are_driven_towards_one():
    g = torch.tensor(normal(3, 40, 20) * np.array([1e-20, 1.0, 1e10])[:, None, None])
    values = torch.linalg.svdvals(orthogonalise(g, 5, COEFFICIENTS, torch.float64))
    assert values.min() > 0.6
    assert values.max() < 1.25


@pytest.mark.parametrize("shape", [(12, 12), (12, 30), (30, 12)])
def test_singular_vectors_are_kept(shape):
    """More steps with coefficients that converge to 1 exactly give U Vᵀ of the SVD."""
    g = torch.tensor(normal(1, *shape))
    u, _, vt = torch.linalg.svd(g, full_matrices=False)
    torch.testing.assert_close(orthogonalise(g, 40, (1.875, -1.25, 0.375), torch.float64), u @ vt, atol=1e-9, rtol=0)


@pytest.mark.parametrize("shape", [(32, 32), (32, 48), (48, 32), (24, 48), (72, 24), (24, 96), (96, 24)])
@pytest.mark.parametrize("condition", [1e3, 1e6])
@pytest.mark.parametrize("polynomials", [QUINTIC, POLAR_EXPRESS], ids=["muon", "polar express"])
def test_float32_is_as_good_on_the_gram_matrix(shape, condition, polynomials):
    """Singular values down to 1e-6: short steps on the Gram matrix add no more rounding than the plain iteration has.

    Without the fresh start after three steps the error is 2e-4.
    """
    u, _, vt = np.linalg.svd(normal(*shape), full_matrices=False)
    x = u @ np.diag(np.geomspace(1, 1 / condition, min(shape)) / 2) @ vt
    wanted = newton_schulz(x, polynomials)
    found = iterate(torch.tensor(x[None], dtype=torch.float32), polynomials)[0].double().numpy()
    assert np.linalg.norm(found - wanted, 2) < (3e-5 if polynomials is QUINTIC else 3e-4)
    exact = iterate(torch.tensor(x[None]), polynomials)[0].numpy()
    assert np.linalg.norm(exact - wanted, 2) < 1e-12


def test_polar_express_reaches_one_where_the_docstring_says():
    values = torch.tensor([[[3e-4]], [[1e-3]], [[0.1]], [[1.0]]], dtype=torch.float64)
    assert (iterate(values, POLAR_EXPRESS) - 1).abs().max() < 0.02
