"""Every update rule against its published equation in float64, against torch's own, and through save and load."""

import copy

import numpy as np
import pytest
import torch

from mup_lightning.optim.hybrid import RULES, HybridOptimizer
from mup_lightning.optim.newton_schulz import orthogonalise
from mup_lightning.optim.options import MuonOptions, RuleOptions

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
SHAPES = [(8, 8), (24, 8), (8, 24), (1, 8), (8, 1)]


def optimizer(rule, parameters, *, blocks=1, options=None, lr=0.05, weight_decay=0.1, eps=1e-8):
    group = {"params": parameters, "names": ["w"] * len(parameters), "blocks": [blocks] * len(parameters), "rule": rule}
    group |= {"lr": lr, "weight_decay": weight_decay, "eps": eps}
    return HybridOptimizer([group | RULES[rule].hyperparameters(options or RuleOptions())])


def adamw_reference(w, grads, lr, wd, eps, beta1=0.9, beta2=0.95):
    m = v = 0.0
    for t, g in enumerate(grads, 1):
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        a = (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps)
        w = w - lr * (a + wd * w)
    return w


def newton_schulz_reference(g):
    a, b, c = COEFFICIENTS
    x = g / max(np.linalg.norm(g), 1e-300)
    for _ in range(5):
        x = a * x + b * (x @ x.T) @ x + c * (x @ x.T) @ (x @ x.T) @ x
    return x


def muon_kimi_reference(w, grads, lr, wd, eps, momentum=0.95):
    m = 0.0
    for g in grads:
        m = momentum * m + g
        w = w - lr * (0.2 * np.sqrt(max(g.shape)) * newton_schulz_reference(g + momentum * m) + wd * w)
    return w


REFERENCES = {"adamw": adamw_reference, "muon_kimi": muon_kimi_reference}


def run(rule, weights, grads, *, dtype=torch.float64, **keys):
    parameter = torch.nn.Parameter(torch.tensor(weights, dtype=dtype))
    stepper = optimizer(rule, [parameter], **keys)
    for g in grads:
        parameter.grad = torch.tensor(g, dtype=dtype)
        stepper.step()
    return parameter.detach().numpy(), stepper


def test_every_rule_has_a_reference():
    assert REFERENCES.keys() == RULES.keys()


@pytest.mark.parametrize("rule", REFERENCES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_equals_the_published_equation(rule, shape, dtype, bound):
    rng = np.random.default_rng(0)
    w, grads = rng.standard_normal(shape), [rng.standard_normal(shape) for _ in range(4)]
    found, _ = run(rule, w, grads, dtype=dtype)
    wanted = REFERENCES[rule](w, grads, lr=0.05, wd=0.1, eps=1e-8)
    assert np.abs(found - wanted).max() < bound * np.abs(wanted).max()


def test_adamw_equals_torchs():
    rng = np.random.default_rng(0)
    w, grads = rng.standard_normal((5, 7)), [rng.standard_normal((5, 7)) for _ in range(5)]
    theirs = torch.nn.Parameter(torch.tensor(w, dtype=torch.float32))
    stepper = torch.optim.AdamW([theirs], lr=0.05, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, fused=True)
    for g in grads:
        theirs.grad = torch.tensor(g, dtype=torch.float32)
        stepper.step()
    found, _ = run("adamw", w, grads, dtype=torch.float32)
    assert np.array_equal(found, theirs.detach().numpy())


def test_muon_kimi_is_close_to_torchs_muon_which_computes_in_bfloat16():
    rng = np.random.default_rng(0)
    w, grads = rng.standard_normal((16, 48)), [rng.standard_normal((16, 48)) for _ in range(3)]
    theirs = torch.nn.Parameter(torch.tensor(w, dtype=torch.float32))
    stepper = torch.optim.Muon([theirs], lr=0.05, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for g in grads:
        theirs.grad = torch.tensor(g, dtype=torch.float32)
        stepper.step()
    found, _ = run("muon_kimi", w, grads, dtype=torch.float32)
    moved = np.linalg.norm(theirs.detach().numpy() - w)
    assert np.linalg.norm(found - theirs.detach().numpy()) < 0.02 * moved


def test_singular_values_are_driven_towards_one():
    rng = np.random.default_rng(0)
    g = torch.tensor(rng.standard_normal((3, 40, 20)) * np.array([1e-20, 1.0, 1e10])[:, None, None])
    values = torch.linalg.svdvals(orthogonalise(g, 5, COEFFICIENTS, torch.float64))
    assert values.min() > 0.6
    assert values.max() < 1.25


def test_singular_vectors_are_kept():
    """More steps with coefficients that converge to 1 exactly give U Vᵀ of the SVD."""
    g = torch.tensor(np.random.default_rng(0).standard_normal((1, 12, 30)))
    u, _, vt = torch.linalg.svd(g, full_matrices=False)
    torch.testing.assert_close(orthogonalise(g, 30, (1.875, -1.25, 0.375), torch.float64), u @ vt, atol=1e-9, rtol=0)


def test_fused_qkv_is_three_matrices():
    rng = np.random.default_rng(0)
    w, g = rng.standard_normal((24, 8)), rng.standard_normal((24, 8)) * np.repeat([1.0, 10.0, 100.0], 8)[:, None]
    together, _ = run("muon_kimi", w, [g], blocks=3)
    apart = np.concatenate([run("muon_kimi", w[i : i + 8], [g[i : i + 8]])[0] for i in (0, 8, 16)])
    whole, _ = run("muon_kimi", w, [g], blocks=1)
    assert np.abs(together - apart).max() < 1e-12
    assert np.abs(together - whole).max() > 1e-3


@pytest.mark.parametrize("rule", REFERENCES)
def test_zero_gradients_only_decay(rule):
    w = np.random.default_rng(0).standard_normal((6, 4))
    found, _ = run(rule, w, [np.zeros((6, 4))])
    assert np.allclose(found, w * (1 - 0.05 * 0.1), atol=1e-15)


@pytest.mark.parametrize("rule", REFERENCES)
def test_rank_deficient_gradients_are_finite_and_right(rule):
    rng = np.random.default_rng(0)
    w, g = rng.standard_normal((8, 6)), np.outer(rng.standard_normal(8), rng.standard_normal(6))
    found, _ = run(rule, w, [g])
    assert np.abs(found - REFERENCES[rule](w, [g], 0.05, 0.1, 1e-8)).max() < 1e-12


@pytest.mark.parametrize("rule", REFERENCES)
def test_state_saves_and_loads_exactly(rule):
    rng = np.random.default_rng(0)
    w, grads = rng.standard_normal((6, 4)), [rng.standard_normal((6, 4)) for _ in range(6)]
    straight, _ = run(rule, w, grads, dtype=torch.float32)
    half, stepper = run(rule, w, grads[:3], dtype=torch.float32)
    saved = copy.deepcopy(stepper.state_dict())
    parameter = torch.nn.Parameter(torch.tensor(half, dtype=torch.float32))
    resumed = optimizer(rule, [parameter], lr=99.0)
    resumed.load_state_dict(saved)
    for g in grads[3:]:
        parameter.grad = torch.tensor(g, dtype=torch.float32)
        resumed.step()
    assert np.array_equal(parameter.detach().numpy(), straight)


def test_nesterov_and_bfloat16_are_switches():
    rng = np.random.default_rng(0)
    w, grads = rng.standard_normal((8, 8)), [rng.standard_normal((8, 8)) for _ in range(2)]
    plain = run("muon_kimi", w, grads)[0]
    heavy_ball = run("muon_kimi", w, grads, options=RuleOptions(muon=MuonOptions(nesterov=False)))[0]
    low = run("muon_kimi", w, grads, options=RuleOptions(muon=MuonOptions(dtype="bfloat16")))[0]
    assert np.abs(plain - heavy_ball).max() > 1e-3
    assert 1e-6 < np.abs(plain - low).max() < 0.02


def test_a_parameter_without_gradient_stays():
    one, other = (torch.nn.Parameter(torch.ones(3, 3)) for _ in range(2))
    one.grad = torch.ones(3, 3)
    optimizer("adamw", [one, other]).step()
    assert (other == 1).all()
    assert (one != 1).all()
