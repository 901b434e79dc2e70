"""Powers of the Gram matrix against numpy's SVD in float64, on the spectra that are hard for them."""

import numpy as np
import pytest
import torch

from mup_lightning.optim import spectral_norm
from mup_lightning.optim.spectral_norm import largest_singular_values, leading, spectral_norms, total_norm
from tests.optim.references import QUINTIC, newton_schulz, unit


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def with_values(values, rows):
    """A (rows, n) matrix of these singular values."""
    n = len(values)
    return torch.linalg.qr(normal(rows, n))[0] * values @ torch.linalg.qr(normal(n, n, seed=1))[0].T


def muon_like(matrix):
    """Five Newton-Schulz steps with Muon's coefficients: the singular values end between 0.68 and 1.21."""
    return torch.from_numpy(newton_schulz(unit(matrix.numpy()), QUINTIC))


CASES = {
    "gaussian": normal(512, 512),
    "gaussian, tall": normal(2000, 200),
    "orthogonalised noise": muon_like(normal(384, 384)),
    "all equal": with_values(torch.ones(300), 600),
    "slow decay": with_values(torch.arange(1, 301).float() ** -0.3, 400),
    "two close ones": with_values(torch.tensor([1.0, 0.999, *[0.5] * 98]), 100),
    "signs": torch.sign(normal(300, 20) @ normal(20, 300, seed=1)),
    "rank 1": normal(200, 1) @ normal(1, 100, seed=1),
    "rank 3": normal(200, 3) @ normal(3, 300, seed=1),
    "one entry": torch.zeros(200, 100).index_put_((torch.tensor(7), torch.tensor(90)), torch.tensor(-3.0)),
    "smaller": normal(5, 3),
    "one number": torch.tensor([[-2.5]]),
    "an embedding": normal(5000, 100),
    "an embedding, huge": normal(2000, 100) * 1e30,
}


def exact(matrix):
    return float(np.linalg.svd(matrix.double().numpy(), compute_uv=False)[0])


@pytest.mark.parametrize("name", CASES)
def test_it_is_within_half_a_percent_from_below(name):
    matrix = CASES[name]
    found, better = float(largest_singular_values(matrix[None])), spectral_norms([matrix])[0]
    assert 0.995 * exact(matrix) < found <= exact(matrix) * (1 + 2e-6)
    assert better == pytest.approx(exact(matrix), rel=5e-4)


def test_a_batch_is_its_matrices_each(monkeypatch):
    monkeypatch.setattr(spectral_norm, "_ELEMENTS", 2 * 100 * 60)
    matrices = torch.stack([normal(100, 60, seed=seed) * 10.0 ** (3 * seed) for seed in range(5)])
    for matrix, value in zip(matrices, largest_singular_values(matrices), strict=True):
        assert float(value) == pytest.approx(float(largest_singular_values(matrix[None])), rel=1e-5)


@pytest.mark.parametrize("rows", [100, 1000, 10])
def test_zero_is_zero_and_what_is_not_finite_is_nan(rows):
    matrices = normal(4, rows, 60)
    matrices[0] = 0
    matrices[1, 3, 3], matrices[2, rows - 1, 0] = float("nan"), float("inf")
    found = largest_singular_values(matrices)
    assert found[0] == 0
    assert found[1:3].isnan().all()
    assert float(found[3]) == pytest.approx(exact(matrices[3]), rel=0.01)


@pytest.mark.parametrize("scale", [1e-38, 1e-24, 1.0, 1e18, 1e36])
def test_norms_of_the_smallest_and_largest_numbers(scale):
    tensors = [normal(40, 20) * scale, normal(30) * scale]
    wanted = [exact(tensors[0]), float(tensors[1].double().norm())]
    assert spectral_norms(tensors) == pytest.approx(wanted, rel=1e-5)
    assert float(total_norm(tensors)) == pytest.approx(float(torch.cat([t.flatten() for t in tensors]).double().norm()))
    assert total_norm([torch.zeros(3)]) == 0
    assert total_norm([*tensors, torch.tensor([torch.inf])]) == torch.inf
    assert total_norm([*tensors, torch.tensor([torch.nan])]).isnan()
    with pytest.raises(FloatingPointError):
        spectral_norms([torch.full((2, 2), torch.nan)])


@pytest.mark.parametrize("shape", [(8, 8), (40, 20), (20, 40), (1, 6), (6, 1)])
def test_leading_singular_pair(shape):
    w = np.random.default_rng(0).standard_normal((3, *shape)) * np.array([1.0, 1e-30, 0.0])[:, None, None]
    norm, u_found, v_found = leading(torch.tensor(w, dtype=torch.float64))
    theta = u_found @ v_found.mT
    u, s, vt = np.linalg.svd(w)
    assert np.allclose(norm[:, 0, 0], s[:, 0], rtol=1e-9, atol=0)
    for i in range(2):
        assert np.abs(theta[i].numpy() - np.outer(u[i, :, 0], vt[i, 0])).max() < 1e-9
    assert not theta[2].any()
    small, _, _ = leading(torch.tensor(w, dtype=torch.float32))
    assert np.allclose(small[:, 0, 0], s[:, 0], rtol=1e-5, atol=0)
