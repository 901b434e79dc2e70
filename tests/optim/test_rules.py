"""All update rules: against the published equations in float64, through save and load, and on odd gradients."""

import numpy as np
import pytest
import torch

from mup_lightning.model.parameters import ParameterInfo
from mup_lightning.optim.optimizer import HybridOptimizer
from mup_lightning.optim.registry import RULES, options_in_force
from mup_lightning.spectral.families import FAMILIES
from mup_lightning.spectral.roles import Role
from mup_lightning.training.tensors import Shards, file_name, held, write
from tests.optim.references import POLAR_EXPRESS, REFERENCES

SHAPES = [(8, 8), (24, 8), (8, 24), (1, 8), (8, 1)]
MATRIX_RULES = [name for name, rule in RULES.items() if rule.whole_matrix]
# SSO's reference solves for its multiplier to the last bit.
OPTIONS = {"sso": {"tolerance": 1e-15}}
# Two rules magnify float32's rounding. Shampoo takes inverse roots of a singular covariance, whose zeros come out as
# 1e-7; SOAP's Adam brings every entry of the rotated gradient to the size of 1, small differences of large numbers too.
FLOAT32 = {"shampoo": 5e-6, "soap": 1e-4}
# Rules and other ways of them: rule, options, the reference's keys.
EQUATIONS = {name: (name, None, {}) for name in REFERENCES} | {
    **{
        f"{name}, polar express": (name, {"coefficients": "polar_express"}, {"polynomials": POLAR_EXPRESS[:5]})
        for name in ("muon", "muon_kimi")
    },
    "shampoo without the bias of M corrected": ("shampoo", *[{"correct_bias": False}] * 2),  # 2603.00541, equation 22
}


def optimizer(
    rule, parameters, *, blocks=1, heads=0, role=Role.HIDDEN, options=None, lr=0.05, weight_decay=0.1, eps=1e-8, **keys
):
    infos = [
        ParameterInfo(name=name, shape=tuple(p.shape), role=role, blocks=blocks, heads=heads)
        for name, p in zip("wabcdefgh", parameters, strict=False)
    ]
    group = {"params": parameters, "infos": infos, "rule": rule, "lr": lr, "weight_decay": weight_decay, "eps": eps}
    section = RULES[rule].section
    rules = OPTIONS if options is None else {section: options}
    own = {key: value for key, value in options_in_force(rules, section).items() if (key, value) != ("eps", None)}
    return HybridOptimizer([group | own], **keys)


def hessian(gradient):
    """Some estimate of a diagonal, for Sophia: of either sign, and such that only some entries are clipped."""
    return 20 * np.cos(7 * gradient)


def step(stepper, gradients):
    for parameter, gradient in zip(stepper.param_groups[0]["params"], gradients, strict=True):
        parameter.grad = torch.tensor(gradient, dtype=parameter.dtype)
    due = stepper.wants_hessian()
    stepper.give_hessian({n: torch.tensor(hessian(p.grad.double().numpy())).to(p.dtype) for n, p in due.items()})
    stepper.step()


def run(rule, weights, grads, *, dtype=torch.float64, **keys):
    parameter = torch.nn.Parameter(torch.tensor(weights, dtype=dtype))
    stepper = optimizer(rule, [parameter], **keys)
    for g in grads:
        step(stepper, [g])
    return parameter.detach().numpy(), stepper


def reference(rule, w, grads, stepper, **keys):
    """The reference's weights. SOAP's first bases are not unique, so it is given the rule's own, and tests them."""
    (state,) = stepper.state.values()
    bases = tuple(state[f"{side}_basis"][0].numpy() for side in ("left", "right")) if rule == "soap" else None
    return REFERENCES[rule](w, grads, lr=0.05, wd=0.1, eps=1e-8, hessian=hessian, bases=bases, **keys)


def normal(*shape, count=None, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal(shape) if count is None else [rng.standard_normal(shape) for _ in range(count)]


def conditioned(matrix):
    """With singular values from 1 to 3: float32 then loses nothing that the equation itself does not."""
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    return u @ np.diag(np.linspace(3, 1, len(s))) @ vt


@pytest.mark.parametrize("case", EQUATIONS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equals_the_published_equation(case, shape, dtype):
    assert REFERENCES.keys() == RULES.keys() == FAMILIES.keys()
    (rule, options, keys), (w, *grads) = EQUATIONS[case], (conditioned(x) for x in normal(*shape, count=5))
    found, stepper = run(rule, w, grads, dtype=dtype, options=options)
    wanted = reference(rule, w, grads, stepper, **keys)
    bound = 1e-12 if dtype == torch.float64 else FLOAT32.get(rule, 1e-6)
    assert found.dtype == (np.float64 if dtype == torch.float64 else np.float32)
    assert np.abs(found - wanted).max() < bound * np.abs(wanted).max()


@pytest.mark.parametrize("rule", MATRIX_RULES)
@pytest.mark.parametrize(("blocks", "rows"), [(3, 8), (2, 3), (2, 20)], ids=["qkv", "narrow kv", "gate and up"])
def test_stacked_matrices_are_updated_each_on_its_own(rule, blocks, rows):
    w, *grads = normal(blocks * rows, 8, count=3)
    grads = [g * np.repeat(10.0 ** np.arange(blocks), rows)[:, None] for g in grads]
    together, _ = run(rule, w, grads, blocks=blocks)
    parts = [slice(start, start + rows) for start in range(0, blocks * rows, rows)]
    apart = np.concatenate([run(rule, w[part], [g[part] for g in grads])[0] for part in parts])
    whole, _ = run(rule, w, grads, blocks=1)
    assert np.abs(together - apart).max() < 1e-10
    assert np.abs(together - whole).max() > 1e-3


@pytest.mark.parametrize("rule", REFERENCES)
def test_many_parameters_are_as_one_at_a_time(rule):
    shapes = [(8, 4), (4, 8), (8, 4), (6, 4), (6, 6)]
    weights = [normal(*shape, seed=i) for i, shape in enumerate(shapes)]
    grads = [[normal(*shape, seed=10 * t + i) for i, shape in enumerate(shapes, 5)] for t in range(3)]
    parameters = [torch.nn.Parameter(torch.tensor(w)) for w in weights]
    stepper = optimizer(rule, parameters)
    for gradients in grads:
        step(stepper, gradients)
    for i, (parameter, w) in enumerate(zip(parameters, weights, strict=True)):
        alone, _ = run(rule, w, [gradients[i] for gradients in grads])
        assert np.abs(parameter.detach().numpy() - alone).max() < 1e-12


@pytest.mark.parametrize("rule", MATRIX_RULES)
@pytest.mark.parametrize("scale", [1e-38, 1e-24, 1e-13, 1e20, 1e36])
def test_steps_of_matrix_rules_do_not_depend_on_the_size_of_gradients(rule, scale):
    """Also where squares vanish or overflow in float32: as in float64 at size 1, with ε in the gradients' units."""
    w, *grads = (conditioned(x) for x in normal(24, 8, count=5))
    options = {"eps": 1e-8 * scale} if rule == "soap" else None
    eps = 1e-8 * scale**2  # Shampoo's
    found, stepper = run(rule, w, [g * scale for g in grads], dtype=torch.float32, eps=eps, options=options)
    wanted = reference(rule, w, grads, stepper)
    assert np.abs(found - wanted).max() < 10 * FLOAT32.get(rule, 1e-6) * np.abs(wanted).max()


@pytest.mark.parametrize("rule", ["muon", "muon_kimi", "sso"])
@pytest.mark.parametrize("scale", [2.0**-100, 2.0**-60, 2.0**60, 2.0**100])
def test_a_power_of_two_changes_no_digit_of_a_step(rule, scale):
    w, *grads = normal(24, 8, count=3)
    keys = {"dtype": torch.float32, "eps": 0.0, "options": {"dtype": "bfloat16"} if "muon" in rule else {}}
    wanted, _ = run(rule, w, grads, **keys)
    assert np.array_equal(run(rule, w, [g * scale for g in grads], **keys)[0], wanted)


@pytest.mark.parametrize("rule", REFERENCES)
def test_zero_gradients_only_decay(rule):
    """SOAP's first step changes no weight; SSO's sphere undoes all decay but the last."""
    w, zeros = normal(6, 4), np.zeros((6, 4))
    decay = 1 - 0.05 * 0.1
    factor = {"soap": decay, "sso": decay * np.sqrt(6 / 4) / np.linalg.norm(w, 2)}.get(rule, decay**2)
    assert np.allclose(run(rule, w, [zeros] * 2)[0], w * factor, atol=1e-15)
    eps = 0.0 if rule == "shampoo" else 1e-8
    for dtype in (torch.float64, torch.float32):
        assert not run(rule, zeros, [zeros] * 2, dtype=dtype, eps=eps)[0].any()


@pytest.mark.parametrize("rule", REFERENCES)
def test_rank_deficient_gradients_are_finite_and_right(rule):
    w, g = normal(8, 6), np.outer(normal(8, seed=1), normal(6, seed=2))
    found, stepper = run(rule, w, [g] * 3)
    # SOAP divides the rounding of what should be zero, 1e-16, by an ε of 1e-8.
    assert np.abs(found - reference(rule, w, [g] * 3, stepper)).max() < (1e-8 if rule == "soap" else 1e-12)
    single, _ = run(rule, w, [g] * 3, dtype=torch.float32)
    assert np.isfinite(single).all()


@pytest.mark.parametrize("rule", REFERENCES)
def test_state_saves_and_loads_exactly(rule, tmp_path):
    """Through a file, as checkpoints go: tensors and plain numbers only; and past the tenth step."""
    w, *grads = normal(6, 4, count=19)
    straight, _ = run(rule, w, grads, dtype=torch.float32, options={})
    half, stepper = run(rule, w, grads[:9], dtype=torch.float32, options={})
    write(tmp_path / file_name(0), held(stepper, 0))
    parameter = torch.nn.Parameter(torch.tensor(half, dtype=torch.float32))
    resumed = optimizer(rule, [parameter], options={})
    Shards(tmp_path).load_states(resumed, 0)
    for g in grads[9:]:
        step(resumed, [g])
    assert np.array_equal(parameter.detach().numpy(), straight)


@pytest.mark.parametrize("rule", REFERENCES)
@pytest.mark.parametrize(("bad", "steps_before"), [(np.nan, 0), (np.inf, 2)])
def test_gradients_that_are_not_finite_are_refused_with_nothing_changed(rule, bad, steps_before):
    parameters = [torch.nn.Parameter(torch.tensor(normal(6, 4, seed=i), dtype=torch.float32)) for i in range(3)]
    stepper = optimizer(rule, parameters)
    for t in range(steps_before):
        step(stepper, [normal(6, 4, seed=t + i) for i in range(3)])
    before = str([stepper.state_dict(), parameters])
    parameters[0].grad = torch.ones(6, 4)
    parameters[1].grad = torch.full((6, 4), bad)
    with pytest.raises(FloatingPointError, match="the gradient of a: NaN or infinity"):
        stepper.step()
    assert str([stepper.state_dict(), parameters]) == before


def test_the_largest_finite_gradients_are_not_refused_and_a_parameter_without_one_stays():
    one, other = (torch.nn.Parameter(torch.ones(3, 3)) for _ in range(2))
    one.grad = torch.full((3, 3), 3e38)
    optimizer("lion", [one, other], weight_decay=0.0).step()
    assert (other == 1).all()
    assert (one == np.float32(0.95)).all()
