"""Rules against other people's code: pytorch_optimizer's, and torch's Muon.

Where both compute one algorithm, the weights agree after several steps in float64. TOLERANCE is 1e-6 of the largest
weight throughout: far above the rounding of float64 (most come out below 1e-12), and far below anything that a wrong
decay rate, order or factor would do. Where a library differs from its paper or from us, the test does the difference
by hand, and its docstring says what it is.
"""

import functools

import numpy as np
import pytest
import pytorch_optimizer
import torch
from pytorch_optimizer.optimizer import sso as library_sso
from pytorch_optimizer.optimizer.muon import base as library_muon
from pytorch_optimizer.optimizer.utils.graft import LayerWiseGrafting

from tests.optim.test_rules import conditioned, hessian, normal, optimizer, run, step

TOLERANCE = 1e-6
SHAPES = [(8, 8), (24, 8), (8, 24)]
LR, DECAY = 0.05, 0.1


class Theirs:
    """A library's optimizer on one float64 matrix."""

    def __init__(self, make, w):
        self.parameter = torch.nn.Parameter(torch.tensor(w))
        self.optimizer = make([self.parameter])

    def step(self, g, *, lr=None, **keys):
        if lr is not None:
            self.optimizer.param_groups[0]["lr"] = lr
        self.parameter.grad = torch.tensor(g)
        self.optimizer.step(**keys)

    @property
    def weight(self):
        return self.parameter.detach().numpy()


def assert_equal(found, wanted, bound=TOLERANCE):
    assert np.abs(found - wanted).max() < bound * np.abs(wanted).max()


def gradients(shape, count=6):
    return [conditioned(x) for x in normal(*shape, count=count)]


@pytest.mark.parametrize("shape", SHAPES)
def test_lion(shape):
    w, *grads = gradients(shape)
    theirs = Theirs(lambda p: pytorch_optimizer.Lion(p, lr=LR, betas=(0.9, 0.99), weight_decay=DECAY), w)
    for g in grads:
        theirs.step(g)
    assert_equal(run("lion", w, grads)[0], theirs.weight)


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


@pytest.mark.parametrize("shape", SHAPES)
def test_muon_is_torchs_in_float64(monkeypatch, shape):
    """torch's, with its cast to bfloat16 taken out; and its factor √max(1, n_out/n_in), where ours has 1, divided out.

    torch's momentum is a moving average and ours accumulates: a factor that the orthogonalisation forgets.
    """
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda tensor: tensor.to(torch.float64, copy=True))
    w, *grads = gradients(shape)
    factor = max(1.0, shape[0] / shape[1]) ** 0.5
    theirs = Theirs(lambda p: torch.optim.Muon(p, lr=LR / factor, weight_decay=DECAY * factor, momentum=0.95), w)
    for g in grads:
        theirs.step(g)
    assert_equal(run("muon", w, grads)[0], theirs.weight)


@pytest.mark.parametrize("shape", SHAPES)
def test_muon_kimi_is_torchs_in_float64(monkeypatch, shape):
    """torch calls Moonlight's factor 0.2·√max(n_in, n_out) "match_rms_adamw"."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda tensor: tensor.to(torch.float64, copy=True))
    w, *grads = gradients(shape)
    keys = {"lr": LR, "weight_decay": DECAY, "momentum": 0.95, "adjust_lr_fn": "match_rms_adamw"}
    theirs = Theirs(lambda p: torch.optim.Muon(p, **keys), w)
    for g in grads:
        theirs.step(g)
    assert_equal(run("muon_kimi", w, grads)[0], theirs.weight)


@pytest.mark.parametrize(("rule", "adjusted"), [("muon", False), ("muon_kimi", True)])
@pytest.mark.parametrize("shape", SHAPES)
def test_muon_is_pytorch_optimizers_in_float64(monkeypatch, rule, adjusted, shape):
    """Its iteration is told to compute in float64 instead of bfloat16; factors as torch's. It writes into .grad."""
    iteration = functools.partial(library_muon.zero_power_via_newton_schulz_5, dtype=torch.float64)
    monkeypatch.setattr(library_muon, "zero_power_via_newton_schulz_5", iteration)
    w, *grads = gradients(shape)
    factor = 1.0 if adjusted else max(1.0, shape[0] / shape[1]) ** 0.5
    group = {"use_muon": True, "lr": LR / factor, "weight_decay": DECAY * factor, "use_adjusted_lr": adjusted}
    theirs = Theirs(lambda p: pytorch_optimizer.Muon([group | {"params": p}], momentum=0.95), w)
    for g in grads:
        theirs.step(g)
    assert_equal(run(rule, w, grads)[0], theirs.weight)


def our_shampoo(w, **options):
    parameter = torch.nn.Parameter(torch.tensor(w))
    return parameter, optimizer("shampoo", [parameter], options=options, lr=LR, weight_decay=DECAY)


@pytest.mark.parametrize("shape", SHAPES)
def test_shampoo_is_the_summing_one_as_beta2_goes_to_1(shape):
    """pytorch_optimizer's Shampoo is that of 2018: it sums GGᵀ on top of εI, and has no momentum at 0.

    Ours averages, and at β₂ = 1 - 1e-8 that is the sum over t: so its step is √t times theirs, with an ε of ε/t.
    Their momentum above 0 mixes the last *preconditioned* gradient into the next raw one, which is no published rule;
    so it is 0 here. Decay is told to be decoupled.
    """
    w, *grads = gradients(shape)
    keys = {"weight_decay": DECAY, "weight_decouple": True, "matrix_eps": 1e-4}
    parameter, stepper = our_shampoo(w, beta1=0.0, beta2=1 - 1e-8)
    theirs = Theirs(lambda p: pytorch_optimizer.Shampoo(p, lr=LR, **keys), w)
    for t, g in enumerate(grads, 1):
        stepper.param_groups[0].update(eps=1e-4 / t, lr=LR / t**0.5, weight_decay=DECAY * t**0.5)
        step(stepper, [g])
        theirs.step(g)
    assert_equal(parameter.detach().numpy(), theirs.weight)


SCALABLE = {
    "decoupled_weight_decay": True,
    "graft_type": LayerWiseGrafting.NONE,
    "matrix_eps": 1e-4,
    "moving_average_for_momentum": True,
    "nesterov": False,
    "preconditioning_compute_steps": 1,
    "shape_interpretation": False,  # or a small matrix would be taken for a vector
    "start_preconditioning_step": 1,
}


def scalable(w, **keys):
    return Theirs(lambda p: pytorch_optimizer.ScalableShampoo(p, **SCALABLE | {"weight_decay": DECAY} | keys), w)


def step_with_corrections(stepper, theirs, g, t, *, root_step, beta1, beta2):
    """One step of both. The library corrects neither average: so ε and the learning rate make up for it.

    root_step: the step that the present roots were taken in.
    """
    correction = 1 - beta2**root_step
    stepper.param_groups[0]["eps"] = 1e-4 * beta2**root_step / correction  # what is left of the εI it begins with
    factor = correction**0.5 / (1 - beta1**t)
    theirs.optimizer.param_groups[0]["weight_decay"] = DECAY / factor
    step(stepper, [g])
    theirs.step(g, lr=LR * factor)


@pytest.mark.parametrize("shape", SHAPES)
def test_shampoo_is_the_scalable_one_without_grafting(shape):
    """pytorch_optimizer's ScalableShampoo: moving averages, by eigenvectors ("SVD"), without its grafting."""
    w, *grads = gradients(shape)
    parameter, stepper = our_shampoo(w, beta1=0.0)
    theirs = scalable(w, betas=(0.0, 0.95), use_svd=True)
    for t, g in enumerate(grads, 1):
        step_with_corrections(stepper, theirs, g, t, root_step=t, beta1=0.0, beta2=0.95)
    assert_equal(parameter.detach().numpy(), theirs.weight)


def test_shampoos_momentum_is_taken_before_the_roots_and_the_librarys_after():
    """The library averages preconditioned gradients, we precondition the average: one thing while the roots stay."""
    w, *grads = gradients((8, 24))
    parameter, stepper = our_shampoo(w, beta1=0.9, precondition_every=100)
    theirs = scalable(w, betas=(0.9, 0.95), use_svd=True)
    for t, g in enumerate(grads, 1):
        step_with_corrections(stepper, theirs, g, t, root_step=1, beta1=0.9, beta2=0.95)
        theirs.optimizer.preconditioning_compute_steps = 100
    assert_equal(parameter.detach().numpy(), theirs.weight)
    moving, stepper = our_shampoo(w, beta1=0.9)
    theirs = scalable(w, betas=(0.9, 0.95), use_svd=True)
    for t, g in enumerate(grads, 1):
        step_with_corrections(stepper, theirs, g, t, root_step=t, beta1=0.9, beta2=0.95)
    assert np.abs(moving.detach().numpy() - theirs.weight).max() > 1e-3


def test_the_librarys_default_roots_are_coarse():
    """Its Schur-Newton iteration ends at an error of 1e-3: its step is ours to a percent, and not to 1e-6."""
    w, g = np.zeros((24, 24)), conditioned(normal(24, 24))
    parameter, stepper = our_shampoo(w, beta1=0.0)
    theirs = scalable(w, betas=(0.0, 0.95), use_svd=False)
    step_with_corrections(stepper, theirs, g, 1, root_step=1, beta1=0.0, beta2=0.95)
    error = np.abs(parameter.detach().numpy() - theirs.weight).max() / np.abs(theirs.weight).max()
    assert 1e-6 < error < 1e-2


def test_soap():
    """Twelve steps, over a refresh of the bases in the eleventh, after which the bound is float32's.

    The library takes the QR decomposition in float32 even of float64 bases; until then both agree to float64. On a
    square matrix: the eigenvectors of a singular GGᵀ, and with them SOAP's steps, are whatever the rounding makes them.
    """
    w, *grads = gradients((8, 8), count=13)
    keys = {"lr": LR, "betas": (0.95, 0.95), "precondition_frequency": 10, "eps": 1e-8, "weight_decay": 0.0}
    theirs = Theirs(lambda p: pytorch_optimizer.SOAP(p, **keys), w)
    parameter = torch.nn.Parameter(torch.tensor(w))
    ours = optimizer("soap", [parameter], lr=LR, weight_decay=0.0)
    for t, g in enumerate(grads, 1):
        theirs.step(g)
        step(ours, [g])
        assert_equal(parameter.detach().numpy(), theirs.weight, bound=1e-9 if t <= 11 else TOLERANCE)


def test_soap_with_a_side_too_long():
    w, *grads = gradients((8, 24))
    keys = {"lr": LR, "betas": (0.95, 0.95), "max_precondition_dim": 8, "eps": 1e-8, "weight_decay": 0.0}
    theirs = Theirs(lambda p: pytorch_optimizer.SOAP(p, **keys), w)
    for g in grads:
        theirs.step(g)
    options = {"max_dimension": 8}
    assert_equal(run("soap", w, grads, options=options, weight_decay=0.0)[0], theirs.weight)


def test_the_librarys_soap_decays_the_step_that_it_has_just_made():
    """W <- (1 - ηλ)(W - ηA), where ours, as all decoupled decay here, is (1 - ηλ)W - ηA: η²λA between them."""
    w, *grads = gradients((8, 8), count=3)
    theirs = Theirs(lambda p: pytorch_optimizer.SOAP(p, lr=LR, weight_decay=DECAY, eps=1e-8), w)
    for g in grads:
        theirs.step(g)
    ours = run("soap", w, grads)[0]
    step_made = w - run("soap", w, grads, weight_decay=0.0)[0]  # ηA: the only step, as the first makes none
    assert_equal(ours + LR * DECAY * step_made, theirs.weight)


class Widened:
    """torch for a library module that casts to bfloat16 and float32: both are float64 here."""

    bfloat16 = float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


@pytest.mark.parametrize("shape", SHAPES)
def test_sso(monkeypatch, shape):
    """pytorch_optimizer's SpectralSphere leaves out two things of the paper, which the test does by hand.

    R: its step is ηΦ, not ηRΦ. The sphere: it never brings W back to ‖W‖₂ = R. What is left, Φ, agrees; for that its
    bfloat16 is made float64, its power iteration and its bisection are given time, and its Nesterov is off. Both get
    sixteen steps of Newton-Schulz: after eight, what is left depends on the norm that one begins with, which differs.
    """
    monkeypatch.setattr(library_sso, "torch", Widened())
    w, *grads = gradients(shape)
    radius = (shape[0] / shape[1]) ** 0.5
    keys = {"lr": LR * radius, "weight_decay": 0.0, "momentum": 0.9, "nesterov": False, "msign_steps": 16}
    keys |= {"power_iteration_steps": 2000, "solver_tolerance_f": 1e-13, "solver_max_iterations": 200}
    theirs = Theirs(lambda p: pytorch_optimizer.SpectralSphere(p, **keys), w)
    for g in grads:
        theirs.weight[...] *= radius / np.linalg.norm(theirs.weight, 2)
        theirs.step(g)
    options = {"tolerance": 1e-13, "steps": 16}
    assert_equal(run("sso", w, grads, options=options, weight_decay=0.0)[0], theirs.weight)


def test_the_librarys_sso_leaves_the_sphere_and_the_radius_out():
    """As it is, in bfloat16: a first step of norm η on any shape, and a norm of W that is not held."""
    w, *grads = gradients((24, 8))
    keys = {"lr": LR, "weight_decay": 0.0, "msign_steps": 8}
    theirs = Theirs(lambda p: pytorch_optimizer.SpectralSphere(p, **keys), w)
    theirs.step(grads[0])
    assert np.linalg.norm(theirs.weight - w, 2) == pytest.approx(LR, rel=0.02)
    assert np.linalg.norm(theirs.weight, 2) == pytest.approx(np.linalg.norm(w, 2), rel=0.01)
    before, _ = run("sso", w, [np.zeros_like(w)], weight_decay=0.0)
    ours, _ = run("sso", w, grads[:1], weight_decay=0.0)
    assert np.linalg.norm(before, 2) == pytest.approx(3**0.5)
    assert np.linalg.norm(ours - before, 2) == pytest.approx(3**0.5 * LR, rel=0.01)
