"""Rules that torch has too, against torch.optim's own."""

import numpy as np
import pytest
import torch

from tests.optim.test_rules import normal, run


def theirs(make, w, grads):
    parameter = torch.nn.Parameter(torch.tensor(w, dtype=torch.float32))
    stepper = make([parameter])
    for g in grads:
        parameter.grad = torch.tensor(g, dtype=torch.float32)
        stepper.step()
    return parameter.detach().numpy()


def test_adamw_is_torchs_to_the_bit():
    w, *grads = normal(5, 7, count=6)
    found, _ = run("adamw", w, grads, dtype=torch.float32)
    keys = {"lr": 0.05, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1, "fused": True}
    assert np.array_equal(found, theirs(lambda p: torch.optim.AdamW(p, **keys), w, grads))


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_sgd_is_torchs_to_the_bit(momentum, nesterov):
    w, *grads = normal(5, 7, count=6)
    options = {"momentum": momentum, "nesterov": nesterov}
    found, _ = run("sgd", w, grads, dtype=torch.float32, options=options, weight_decay=0.0)
    keys = {"lr": 0.05, "momentum": momentum, "nesterov": nesterov, "fused": True}
    assert np.array_equal(found, theirs(lambda p: torch.optim.SGD(p, **keys), w, grads))


def test_sgd_without_momentum_decays_as_torchs():
    """With momentum torch's decay enters the momentum, and ours, which the recipe is derived for, does not."""
    w, *grads = normal(5, 7, count=6)
    options = {"momentum": 0.0}
    found, _ = run("sgd", w, grads, dtype=torch.float32, options=options)
    wanted = theirs(lambda p: torch.optim.SGD(p, lr=0.05, weight_decay=0.1), w, grads)
    assert np.abs(found - wanted).max() < 1e-6


@pytest.mark.parametrize(("rule", "adjust"), [("muon", "original"), ("muon_kimi", "match_rms_adamw")])
def test_muon_is_close_to_torchs_which_computes_in_bfloat16(rule, adjust):
    """On a wide matrix, where torch's "original" factor, √max(1, n_out/n_in), is 1."""
    w, *grads = normal(16, 48, count=4)
    found, _ = run(rule, w, grads, dtype=torch.float32)
    keys = {"lr": 0.05, "weight_decay": 0.1, "momentum": 0.95, "adjust_lr_fn": adjust}
    wanted = theirs(lambda p: torch.optim.Muon(p, **keys), w, grads)
    assert np.linalg.norm(found - wanted) < 0.02 * np.linalg.norm(wanted - w)
