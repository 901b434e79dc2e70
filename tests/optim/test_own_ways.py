"""What single rules do beside their equation: options, refreshes, and cases that only they know."""

import numpy as np
import pytest
import torch

from mup_lightning.errors import UserError
from mup_lightning.spectral.roles import Role
from tests.optim.references import REFERENCES
from tests.optim.test_rules import hessian, normal, optimizer, run, step


@pytest.mark.parametrize("rule", ["sophia", "soap"])
def test_what_happens_every_tenth_step(rule):
    """Sophia's second estimate; SOAP's refresh of bases that are unique up to the vectors' signs."""
    w, *grads = normal(8, 8, count=24)
    found, _ = run(rule, w, grads)
    wanted = REFERENCES[rule](w, grads, 0.05, 0.1, 1e-8, hessian=hessian)
    assert np.abs(found - wanted).max() < 1e-10


def test_shampoo_keeps_its_roots_between_refreshes():
    """Precondition every third step: A is linear in M while the roots stay."""
    w, *grads = normal(6, 4, count=5)
    options = {"precondition_every": 3, "beta1": 0.0}
    parameter = torch.nn.Parameter(torch.tensor(w))
    stepper = optimizer("shampoo", [parameter], options=options, weight_decay=0.0)
    moves, roots = [], []
    for g in grads:
        before = parameter.detach().clone()
        step(stepper, [g])
        moves.append(parameter.detach() - before)
        roots.append(stepper.state[parameter]["left_root"].clone())
    assert torch.equal(roots[0], roots[1])
    assert torch.equal(roots[0], roots[2])
    assert not torch.equal(roots[0], roots[3])
    right = stepper.state[parameter]["right_root"][0]
    expected = -0.05 * roots[3][0] @ torch.tensor(grads[3]) @ right
    torch.testing.assert_close(moves[3], expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("shape", [(8, 3), (3, 8)])
def test_shampoo_takes_the_whole_root_on_one_side_alone_and_refuses_to_precondition_nothing(shape):
    options = {"max_dimension": 4}
    g = normal(*shape)
    found, _ = run("shampoo", np.zeros(shape), [g], options=options, eps=0.0)
    u, _, vt = np.linalg.svd(g, full_matrices=False)
    assert np.abs(found + 0.05 * u @ vt).max() < 1e-12
    with pytest.raises(UserError, match=r"rules\.shampoo\.max_dimension is 4.*8 x 5.*at least 5"):
        run("shampoo", normal(8, 5), [normal(8, 5)], options=options)


def test_shampoo_takes_its_roots_in_float64():
    """Where singular values span a factor of 1000, float32's eigenvectors alone would put U Vᵀ 0.1 off."""
    u, _, vt = np.linalg.svd(normal(64, 64))
    g = u @ np.diag(np.geomspace(1, 1e-3, 64)) @ vt
    found, _ = run("shampoo", np.zeros((64, 64)), [g], dtype=torch.float32, eps=1e-16)
    assert np.linalg.norm(found / 0.05 + u @ vt, 2) < 0.02


def test_soap_without_preconditioners_is_adam_a_step_late():
    w, *grads = normal(8, 5, count=4)
    options = {"max_dimension": 4, "eps": 1e-30}
    found, stepper = run("soap", w, grads, options=options)
    assert next(iter(stepper.state.values())).keys() == {"step", "exp_avg", "exp_avg_sq"}
    assert np.abs(found - REFERENCES["adamw"](w, grads[1:], 0.05, 0.1, 0.0, beta1=0.95)).max() < 1e-12


def test_sso_counts_the_rows_of_an_embedding_as_inputs():
    """Stored as (n_in, n_out), a weight takes the same steps as its transpose stored as (n_out, n_in)."""
    w, gradients = normal(12, 5), normal(12, 5, count=3, seed=1)
    parameter = torch.nn.Parameter(torch.tensor(w))
    stepper = optimizer("sso", [parameter], role=Role.INPUT)
    for g in gradients:
        step(stepper, [g])
    turned, _ = run("sso", w.T, [g.T for g in gradients])
    np.testing.assert_allclose(parameter.detach().numpy(), turned.T, rtol=1e-12, atol=1e-12)


def test_sso_keeps_a_weight_whose_gradient_is_a_multiple_of_it():
    """M = Θ has no tangent part: the only Φ with ⟨Θ, Φ⟩ = 0 is 0."""
    w = np.outer(normal(8), normal(5, seed=1))
    found, _ = run("sso", w, [w, -3 * w], weight_decay=0.0, options={})
    assert np.abs(found - w * np.sqrt(8 / 5) / np.linalg.norm(w, 2)).max() < 2e-4 * 0.05 * 2


def test_momentum_nesterov_and_bfloat16_are_switches():
    w, *grads = normal(8, 8, count=3)
    plain = run("muon_kimi", w, grads)[0]
    assert np.abs(plain - run("muon_kimi", w, grads, options={"nesterov": False})[0]).max() > 1e-3
    assert 1e-6 < np.abs(plain - run("muon_kimi", w, grads, options={"dtype": "bfloat16"})[0]).max() < 0.02
    _, stepper = run("sgd", w, grads, options={"momentum": 0.0})
    assert not any(stepper.state.values())


@pytest.mark.parametrize("rule", ["muon", "muon_kimi"])
def test_muon_by_heads_takes_every_head_for_a_matrix(rule):
    """Three of the stacked matrices have two heads each: (4, 8) each, and none of (8, 8)."""
    w, *grads = normal(24, 8, count=3)
    found = run(rule, w, grads, blocks=3, heads=6, options={"per_head": True})[0]
    assert np.abs(found - run(rule, w, grads, blocks=6)[0]).max() < 1e-12
    assert np.abs(found - run(rule, w, grads, blocks=3, heads=6)[0]).max() > 1e-3
    headless = run(rule, w, grads, blocks=3, options={"per_head": True})[0]
    assert np.array_equal(headless, run(rule, w, grads, blocks=3)[0])
