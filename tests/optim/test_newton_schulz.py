"""Newton-Schulz: what it does to singular values and vectors, and what rounding does to it."""

import numpy as np
import pytest
import torch

from mup_lightning.optim.newton_schulz import POLAR_EXPRESS, iterate, orthogonalise, polar_express
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


def quintic(low, high):
    """The odd polynomial ax + bx³ + cx⁵ nearest to 1 on [low, high], by Remez: four equal errors, signs in turn."""
    inner = np.array([3 * low + high, low + 3 * high]) / 4
    for _ in range(50):
        points = np.array([low, *inner, high])
        a, b, c, _ = np.linalg.solve(np.stack([points, points**3, points**5, [1, -1, 1, -1]], 1), np.ones(4))
        inner = np.sqrt((-3 * b + np.array([-1, 1]) * np.sqrt(9 * b * b - 20 * a * c)) / (10 * c))
    return np.array([a, b, c])


def test_polar_express_is_the_best_polynomial_of_what_the_steps_before_it_leave():
    """From the paper's algorithm: lower bound 1e-3, no fit below 0.024 of the upper bound, a margin of 1.01."""
    low, high, powers = 1e-3, 1.0, np.array([1, 3, 5])
    for published in polar_express(7):
        best = quintic(max(low, 0.02407327424182761 * high), high)
        best *= 2 / (best @ low**powers + best @ high**powers)  # as far from 1 at either end
        np.testing.assert_allclose(published, best / 1.01**powers, rtol=0, atol=1e-4)
        low = best @ low**powers
        high = 2 - low
    assert polar_express(10)[7:] == [(1.875, -1.25, 0.375)] * 3  # their limit, ax + bx³ + cx⁵ = 1 to third order at 1


@pytest.mark.parametrize(("steps", "ours", "muon"), [(5, 0.386, 0.678), (8, 1e-6, 0.317)])
@pytest.mark.parametrize("shape", [(24, 24), (24, 72), (72, 24)])
def test_polar_express_brings_a_matrix_of_condition_1000_nearer_to_its_polar_factor(shape, steps, ours, muon):
    u, _, vt = np.linalg.svd(normal(*shape), full_matrices=False)
    values = np.geomspace(1, 1e-3, 24)
    g = torch.tensor(u @ np.diag(values) @ vt)
    error = {
        words: float(np.linalg.norm(orthogonalise(g[None].clone(), steps, words, torch.float64)[0].numpy() - u @ vt, 2))
        for words in (COEFFICIENTS, "polar_express")
    }
    x = values / np.linalg.norm(values)  # an odd polynomial of a matrix is that of its singular values
    for a, b, c in polar_express(steps):
        x = a * x + b * x**3 + c * x**5
    assert error["polar_express"] == pytest.approx(abs(x - 1).max(), abs=1e-12)
    assert error["polar_express"] < ours
    assert error[COEFFICIENTS] > muon
    assert torch.isfinite(orthogonalise(g[None].clone(), steps, "polar_express", torch.bfloat16)).all()
