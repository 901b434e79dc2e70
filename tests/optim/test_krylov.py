"""The block Krylov method against numpy's SVD in float64, on the spectra that are hard for it."""

import numpy as np
import pytest
import torch

from mup_lightning.optim.newton_schulz import orthogonalise
from mup_lightning.optim.spectral_norm import largest_singular_values


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def with_values(values, rows):
    """A (rows, n) matrix of these singular values."""
    n = len(values)
    return torch.linalg.qr(normal(rows, n))[0] * values @ torch.linalg.qr(normal(n, n, seed=1))[0].T


def muon_like(matrix):
    """Five Newton-Schulz steps with Muon's coefficients: the singular values end between 0.68 and 1.21."""
    X = matrix / matrix.norm()
    for _ in range(5):
        A = X @ X.T
        X = 3.4445 * X + (-4.775 * A + 2.0315 * A @ A) @ X
    return X


CASES = {
    "gaussian": normal(512, 512),
    "gaussian, wide": normal(128, 512),
    "gaussian, tall": normal(2000, 200),
    "orthogonalised noise": muon_like(normal(384, 384)),
    "orthogonalised, slow decay": muon_like(with_values(torch.logspace(0, -4, 256), 256)),
    "all equal": with_values(torch.ones(300), 600),
    "slow decay": with_values(torch.arange(1, 301).float() ** -0.3, 400),
    "linear decay": with_values(torch.linspace(1, 0, 300), 300),
    "two close ones": with_values(torch.tensor([1.0, 0.999, *[0.5] * 98]), 100),
    "signs": torch.sign(normal(300, 20) @ normal(20, 300, seed=1)),
    "rank 1": normal(200, 1) @ normal(1, 100, seed=1),
    "rank 3": normal(200, 3) @ normal(3, 300, seed=1),
    "rank 40": normal(200, 40) @ normal(40, 300, seed=1),
    "one entry": torch.zeros(200, 100).index_put_((torch.tensor(7), torch.tensor(90)), torch.tensor(-3.0)),
    "small": normal(48, 100),
    "smaller": normal(5, 3),
    "one number": torch.tensor([[-2.5]]),
    "an embedding": normal(5000, 100),
    "an embedding, of rank 3": normal(5000, 3) @ normal(3, 100, seed=1),
    "an embedding, huge": normal(2000, 100) * 1e30,
    "an embedding, tiny, wide": normal(20, 1000) * 1e-30,
    "huge": normal(100, 100) * 1e30,
    "tiny": normal(100, 100) * 1e-30,
}


def exact(matrix):
    return float(np.linalg.svd(matrix.double().numpy(), compute_uv=False)[0])


@pytest.mark.parametrize("name", CASES)
def test_it_is_within_a_percent_cold_and_better_warm(name):
    matrix = CASES[name]
    cold, start = largest_singular_values(matrix[None])
    warm, _ = largest_singular_values(matrix[None], start)
    for found in (float(cold), float(warm)):
        assert 0.99 * exact(matrix) < found <= exact(matrix) * (1 + 2e-6)
    assert float(warm) > float(cold) * (1 - 2e-6)


def test_a_batch_is_its_matrices_each():
    matrices = torch.stack([normal(100, 60, seed=seed) * 10.0 ** (3 * seed) for seed in range(4)])
    found, start = largest_singular_values(matrices)
    assert start.shape == (4, 4, 60)
    for matrix, value in zip(matrices, found, strict=True):
        assert float(value) == pytest.approx(float(largest_singular_values(matrix[None])[0]), rel=1e-5)


@pytest.mark.parametrize("rows", [100, 1000, 10])
def test_zero_is_zero_and_what_is_not_finite_is_nan(rows):
    matrices = normal(4, rows, 60)
    matrices[0] = 0
    matrices[1, 3, 3], matrices[2, rows - 1, 0] = float("nan"), float("inf")
    found, start = largest_singular_values(matrices)
    assert found[0] == 0
    assert found[1:3].isnan().all()
    assert float(found[3]) == pytest.approx(exact(matrices[3]), rel=0.01)
    # It recovers from both.
    again, _ = largest_singular_values(normal(4, rows, 60), start)
    assert again.tolist() == pytest.approx([exact(matrix) for matrix in normal(4, rows, 60)], rel=0.01)


def test_a_direction_that_the_kept_vectors_miss_is_found():
    first = torch.diag(torch.cat([torch.linspace(1, 0.5, 20), torch.zeros(180)]))
    second = first.clone()
    second[150, 150] = 1.05
    _, start = largest_singular_values(first[None])
    assert start[0, :3, 150].abs().max() < 1e-3
    assert float(largest_singular_values(second[None], start)[0]) == pytest.approx(1.05, rel=0.01)


def test_no_random_number_of_anyone_else_is_used():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    largest_singular_values(normal(2, 100, 60))
    assert torch.equal(torch.get_rng_state(), state)


def test_on_muons_own_updates():
    orthogonal = torch.stack([normal(256, 256), with_values(torch.logspace(0, -5, 256), 256)])
    update = orthogonalise(orthogonal, 5, (3.4445, -4.775, 2.0315), torch.float32)
    found, _ = largest_singular_values(update)
    assert found.tolist() == pytest.approx([exact(matrix) for matrix in update], rel=0.01)
