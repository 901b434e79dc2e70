"""Rules against other people's code: torch's own, and pytorch_optimizer's.

Where both compute one algorithm, the weights agree after several steps in float64. TOLERANCE is 1e-6 of the largest
weight throughout: far above the rounding of float64 (most come out below 1e-12), and far below anything that a wrong
decay rate, order or factor would do. Where a library differs from its paper or from us, the test makes up for the
difference, and says what it is.
"""

import functools

import numpy as np
import pytest
import pytorch_optimizer
import torch
from pytorch_optimizer.optimizer.muon import base as library_muon
from pytorch_optimizer.optimizer.utils.graft import LayerWiseGrafting

from tests.optim.test_rules import conditioned, hessian, normal, optimizer, run, step

TOLERANCE = 1e-6
SHAPES = [(8, 8), (24, 8), (8, 24)]
LR, DECAY = 0.05, 0.1
USUAL = {"lr": LR, "weight_decay": DECAY}


class Theirs:
    """A library's optimizer on one matrix."""

    def __init__(self, make, w, dtype=torch.float64):
        self.parameter = torch.nn.Parameter(torch.tensor(w, dtype=dtype))
        self.optimizer = make([self.parameter])

    def step(self, g, *, lr=None, **keys):
        if lr is not None:
            self.optimizer.param_groups[0]["lr"] = lr
        self.parameter.grad = torch.tensor(g, dtype=self.parameter.dtype)
        self.optimizer.step(**keys)

    @property
    def weight(self):
        return self.parameter.detach().numpy()


def assert_equal(found, wanted):
    assert np.abs(found - wanted).max() < TOLERANCE * np.abs(wanted).max()


def gradients(shape, count=6):
    return [conditioned(x) for x in normal(*shape, count=count)]


def unscaled(rows, columns):
    """torch's usual Muon has a factor √max(1, n_out/n_in), where ours has 1: it is divided out."""
    factor = max(1.0, rows / columns) ** 0.5
    return {"lr": LR / factor, "weight_decay": DECAY * factor}


def library_muon_on(parameters, **keys):
    return pytorch_optimizer.Muon([{"use_muon": True, "params": parameters, **keys}], momentum=0.95)


# case: rule, what the library makes of parameters and a shape, our keys. torch's momentum is a moving average and ours
# accumulates, a factor that the orthogonalisation forgets; its Moonlight factor is called "match_rms_adamw".
LIBRARIES = {
    "lion": ("lion", lambda p, s: pytorch_optimizer.Lion(p, betas=(0.9, 0.99), **USUAL), {}),
    "adan": ("adan", lambda p, s: pytorch_optimizer.Adan(p, weight_decouple=True, **USUAL), {}),
    "torch's muon": ("muon", lambda p, s: torch.optim.Muon(p, momentum=0.95, **unscaled(*s)), {}),
    "torch's muon, Moonlight's factor": (
        "muon_kimi",
        lambda p, s: torch.optim.Muon(p, momentum=0.95, adjust_lr_fn="match_rms_adamw", **USUAL),
        {},
    ),
    "muon": ("muon", lambda p, s: library_muon_on(p, use_adjusted_lr=False, **unscaled(*s)), {}),
    "muon, Moonlight's factor": ("muon_kimi", lambda p, s: library_muon_on(p, use_adjusted_lr=True, **USUAL), {}),
    # Sides of 8 alone: the eigenvectors of a singular GGᵀ, and with them SOAP's steps, are whatever the rounding makes
    # them. Without decay: the library decays the step that it has just made.
    "soap": (
        "soap",
        lambda p, s: pytorch_optimizer.SOAP(
            p, lr=LR, betas=(0.95, 0.95), precondition_frequency=10, eps=1e-8, max_precondition_dim=8, weight_decay=0.0
        ),
        {"options": {"max_dimension": 8}, "weight_decay": 0.0},
    ),
}


@pytest.mark.parametrize("case", LIBRARIES)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_a_librarys(monkeypatch, case, shape):
    """With the casts of Muon's iterations to bfloat16 taken out."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda tensor: tensor.to(torch.float64, copy=True))
    iteration = functools.partial(library_muon.zero_power_via_newton_schulz_5, dtype=torch.float64)
    monkeypatch.setattr(library_muon, "zero_power_via_newton_schulz_5", iteration)
    rule, make, keys = LIBRARIES[case]
    w, *grads = gradients(shape)
    theirs = Theirs(lambda parameters: make(parameters, shape), w)
    for g in grads:
        theirs.step(g)
    assert_equal(run(rule, w, grads, **keys)[0], theirs.weight)


@pytest.mark.parametrize(
    ("rule", "options", "make"),
    [
        ("adamw", {}, lambda p: torch.optim.AdamW(p, betas=(0.9, 0.95), eps=1e-8, fused=True, **USUAL)),
        *(
            # With momentum torch's decay enters the momentum, and ours, which the recipe is derived for, does not.
            ("sgd", o, lambda p, o=o: torch.optim.SGD(p, lr=LR, fused=True, **o))
            for o in ({"momentum": 0.0}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True})
        ),
    ],
)
def test_equals_torchs_to_the_bit(rule, options, make):
    w, *grads = normal(5, 7, count=7)
    theirs = Theirs(make, w, torch.float32)
    for g in grads:
        theirs.step(g)
    decay = DECAY if rule == "adamw" else 0.0
    found, _ = run(rule, w, grads, dtype=torch.float32, options=options, weight_decay=decay)
    assert np.array_equal(found, theirs.weight)


def test_sophia():
    """Over twelve steps, so that the second estimate of the Hessian is in it.

    The library clips m/max(h, ε) to ±p, its form of Sophia-H; the paper's algorithm 3 clips m/max(ρh, ε) to ±1. That
    is the same update where p = ρ, the learning rate is over ρ, and ε too.
    """
    w, *grads = normal(8, 6, count=13)
    rho, eps = 0.05, 1e-12
    keys = {"lr": LR / rho, "weight_decay": DECAY * rho, "p": rho, "eps": eps / rho, "betas": (0.965, 0.99)}
    theirs = Theirs(lambda p: pytorch_optimizer.SophiaH(p, update_period=10, **keys), w)
    for t, g in enumerate(grads):
        theirs.step(g, hessian=[torch.tensor(hessian(g))] if t % 10 == 0 else None)
    assert_equal(run("sophia", w, grads)[0], theirs.weight)


SCALABLE = {
    "betas": (0.0, 0.95),
    "decoupled_weight_decay": True,
    "graft_type": LayerWiseGrafting.NONE,
    "matrix_eps": 1e-4,
    "moving_average_for_momentum": True,
    "nesterov": False,
    "preconditioning_compute_steps": 1,
    "shape_interpretation": False,  # or a small matrix would be taken for a vector
    "start_preconditioning_step": 1,
    "use_svd": True,
}


@pytest.mark.parametrize("shape", SHAPES)
def test_shampoo_is_the_scalable_one_without_grafting(shape):
    """Moving averages, by eigenvectors ("SVD"), without momentum, which the library takes after the roots.

    The library does not correct its averages: so ε and the learning rate make up for it.
    """
    w, *grads = gradients(shape)
    parameter = torch.nn.Parameter(torch.tensor(w))
    ours = optimizer("shampoo", [parameter], options={"beta1": 0.0}, **USUAL)
    theirs = Theirs(lambda p: pytorch_optimizer.ScalableShampoo(p, weight_decay=DECAY, **SCALABLE), w)
    for t, g in enumerate(grads, 1):
        correction = 1 - 0.95**t
        ours.param_groups[0]["eps"] = 1e-4 * 0.95**t / correction  # what is left of the εI that it begins with
        theirs.optimizer.param_groups[0]["weight_decay"] = DECAY / correction**0.5
        step(ours, [g])
        theirs.step(g, lr=LR * correction**0.5)
    assert_equal(parameter.detach().numpy(), theirs.weight)
