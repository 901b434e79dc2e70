"""The four ratios of the assumption checks: against closed forms, and against explicit loops in float64."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from mup_lightning.errors import UserError
from mup_lightning.studies.assumptions import AssumptionSettings
from mup_lightning.studies.assumptions.measure import (
    alignment,
    feature_ratio,
    measure,
    own_gradients,
    trainings,
    weight_ratios,
)
from mup_lightning.studies.assumptions.networks import build_network

NETWORKS = ("mlp", "gpt2")


@pytest.fixture(scope="module")
def small(corpus):
    return AssumptionSettings(
        depths=[2, 3, 4], width=16, seeds=2, steps=4, batch=6, sequences=3, context=8, data=str(corpus)
    )


def one(network, optimizer, depth, seed, settings):
    """The training of this network."""
    found = trainings(replace(settings, network=network, optimizer=[optimizer]))
    return next(one for one in found if (one[1].model.depth, one[1].seed) == (depth, seed))


def build(*what):
    return build_network(*one(*what))


def group(rule, **options):
    """A parameter group as the optimizer holds it."""
    defaults = {
        "sgd": {"momentum": 0.9, "nesterov": False},
        "adamw": {"beta1": 0.9, "beta2": 0.95, "eps": 1e-16},
    }[rule]
    return {"rule": rule, "lr": 0.01, "weight_decay": 0.0, **defaults, **options}


def test_weights_against_numpy():
    generator = np.random.default_rng(0)
    before, after = generator.normal(size=(2, 3, 12, 5))
    found = weight_ratios(list(map(torch.from_numpy, before)), list(map(torch.from_numpy, after)))
    for W, new, (ratio, size) in zip(before, after, found, strict=True):
        norm, total, step = (np.linalg.svd(x)[1][0] for x in (W, new, new - W))
        assert ratio == pytest.approx(total / (norm + step))
        assert size == pytest.approx(step / norm)


def test_features_are_compared_vector_by_vector():
    h = torch.tensor([[[3.0, 0.0], [0.0, 2.0]], [[1.0, 0.0], [2.0, 0.0]]])
    change = torch.tensor([[[1.0, 0.0], [2.0, 0.0]], [[-0.5, 0.0], [0.0, 0.0]]])
    # Along: 1; at right angles and of equal size: 1/√2; against, half as large: (1/2)/(3/2); none: 1.
    ratio, size = feature_ratio(h, h + change)
    assert ratio == pytest.approx((1 + math.sqrt(0.5) + 1 / 3 + 1) / 4)
    assert size == pytest.approx((1 / 3 + 1 + 1 / 2 + 0) / 4)


@pytest.mark.parametrize("network", NETWORKS)
def test_every_sample_s_gradient_is_that_of_its_own_loss(network, small):
    """As observed in one backward pass, against a loop of backward passes over samples alone, in float64."""
    subject = build(network, "adamw", 2, 0, small)
    model = subject.model.double()
    batch = next(subject.batches)
    if network == "mlp":
        batch = (batch[0].double(), batch[1])
    loss, seen = subject.observed_loss(batch)
    loss.backward()
    found = {}
    for matrix in subject.matrices:
        transposed = matrix.block is None
        inputs = seen.inputs[matrix.name, matrix.block]
        found[matrix] = own_gradients(inputs, seen.delta(matrix), transposed=transposed)
        expected = matrix.cut(model.get_parameter(matrix.parameter).grad, 0)
        torch.testing.assert_close(found[matrix].mean(0), expected, rtol=1e-9, atol=1e-12)
    assert len(found) == (1 + 2 * 2 if network == "mlp" else 1 + 2 * 4)
    for i in range(len(batch[0]) if network == "mlp" else len(batch)):
        alone = tuple(part[i : i + 1] for part in batch) if network == "mlp" else batch[i : i + 1]
        model.zero_grad()
        subject.loss(alone).backward()
        for matrix in subject.matrices:
            expected = matrix.cut(model.get_parameter(matrix.parameter).grad, 0)
            torch.testing.assert_close(found[matrix][i], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rule", ["sgd", "adamw"])
@pytest.mark.parametrize("transposed", [False, True])
def test_alignment_against_a_loop(rule, transposed):
    """Numpy, sample by sample: SGD's first step is the gradient, AdamW's its sign."""
    generator = np.random.default_rng(1)
    B, T, n_in, n_out = 5, 3, 4, 6
    x, delta = generator.normal(size=(B, T, n_in)), generator.normal(size=(B, T, n_out))
    direction = {"sgd": lambda G: G, "adamw": np.sign}[rule]
    own = [B * sum(np.outer(delta[b, t], x[b, t]) for t in range(T)) for b in range(B)]
    together = direction(sum(own) / B)
    ratios = [np.linalg.norm(x[b] @ together.T) / (np.linalg.norm(x[b] @ direction(own[b]).T) / B) for b in range(B)]
    weight = torch.randn(n_out, n_in).double()
    found = alignment(
        group(rule),
        weight.mT.contiguous() if transposed else weight,
        torch.from_numpy(x),
        torch.from_numpy(delta),
        transposed=transposed,
    )
    assert found == pytest.approx(np.mean(ratios), rel=1e-6)


def test_samples_that_cancel_have_no_alignment_and_dead_ones_are_left_out():
    x = torch.ones(4, 1, 3).double()
    delta = torch.ones(4, 1, 2).double() * torch.tensor([1.0, -1.0, 1.0, -1.0])[:, None, None]
    assert alignment(group("sgd"), torch.zeros(2, 3).double(), x, delta) == pytest.approx(0.0)
    delta = torch.tensor([2.0, 0.0, 0.0, 0.0])[:, None, None].double().expand(4, 1, 2)
    assert alignment(group("sgd"), torch.zeros(2, 3).double(), x, delta) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [("soap", "its first step changes nothing"), ("sophia", "its first step needs a Hessian for every sample")],
)
def test_optimizers_without_a_step_of_single_samples_are_refused(optimizer, message, small):
    with pytest.raises(UserError, match=f"{optimizer} cannot be checked: {message}"):
        measure(one("mlp", optimizer, 2, 0, small))


@pytest.mark.parametrize("network", NETWORKS)
def test_a_measured_step_is_the_step_that_training_makes(network, small):
    """Measuring changes nothing: the same losses as a plain loop; and what is recorded is what the step did."""
    what = (network, "muon_kimi", 3, 1, replace(small, warmup=0))
    found = measure(one(*what))
    subject, losses = build(*what), []
    for step in range(5):
        subject.optimizer.zero_grad()
        loss = subject.loss(next(subject.batches))
        loss.backward()
        before = {name: p.detach().double().numpy().copy() for name, p in subject.model.named_parameters()}
        subject.optimizer.step()
        losses.append(loss.item())
        if step in (0, 2, 4):
            ratios = found.measured[{0: "start", 2: "middle", 4: "end"}[step]]
            after = {name: p.detach().double().numpy() for name, p in subject.model.named_parameters()}
            matrix, name, rows = {
                "mlp": ("second", "branches.1.layers.1.weight", slice(None)),
                "gpt2": ("value", "blocks.1.attention.qkv.weight", slice(32, 48)),
            }[network]
            W, new = before[name][rows], after[name][rows]
            norms = [np.linalg.norm(X, 2) for X in (new, W, new - W)]
            assert ratios["weights"][matrix][1] == pytest.approx(norms[0] / (norms[1] + norms[2]), rel=1e-5)
            assert ratios["weights_step"][matrix][1] == pytest.approx(norms[2] / norms[1], rel=1e-4)
    assert found.losses == pytest.approx(losses, rel=1e-5)


def test_what_gpt2_shows(small):
    """V and not Q or K, the stream after each block, and GELU after the up matrix."""
    found = measure(one("gpt2", "adamw", 2, 0, small)).measured["start"]
    assert set(found["weights"]) == {"token", "value", "out", "up", "down"}
    assert set(found["features"]) == {"token", "value", "out", "up", "down", "stream"}
    assert set(found["activation"]) == {"value", "up"}
    assert {len(values) for name, values in found["features"].items() if name != "token"} == {2}
    subject = build("gpt2", "adamw", 2, 0, small)
    batch, model = next(subject.batches), subject.model
    _, seen = subject.observed_loss(batch)
    matrices = {(matrix.name, matrix.block): matrix for matrix in subject.matrices}
    h = model.token(batch[:, :-1]) + model.position.weight
    torch.testing.assert_close(seen.output(subject.matrices[0]), h.detach())
    block = model.blocks[0]
    assert block.attention.head_dim == block.attention.out.in_features  # one head
    query, key, value = (block.attention_norm(h) @ block.attention.qkv.weight.T).split(16, dim=2)
    torch.testing.assert_close(seen.output(matrices["value", 0]), value.detach())
    future = torch.full((8, 8), -torch.inf).triu(1)
    mixed = (query @ key.mT * block.attention.scale + future).softmax(2) @ value
    torch.testing.assert_close(seen.inputs["out", 0], mixed.detach())
    for block in model.blocks:
        h, _ = block(h)
    assert len(seen.streams) == 2
    torch.testing.assert_close(seen.streams[-1], h.detach())
    up = seen.output(matrices["up", 0])
    torch.testing.assert_close(seen.inputs["down", 0], torch.nn.functional.gelu(up, approximate="tanh"))
