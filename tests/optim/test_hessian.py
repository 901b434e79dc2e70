"""The estimate of the Hessian's diagonal against the exact one, and its way into the optimizer."""

import numpy as np
import pytest
import torch

from mup_lightning.model.loss import cross_entropy
from mup_lightning.optim.sophia import estimate, sample_labels, uniforms
from tests.optim.test_rules import normal, optimizer

TOKENS, WIDTH, VOCABULARY, PADDED = 6, 4, 5, 8


def problem():
    """A softmax regression: its Gauss-Newton matrix is its Hessian, whatever the labels are."""
    features = torch.tensor(normal(TOKENS, WIDTH))
    weight = torch.nn.Parameter(torch.tensor(normal(PADDED, WIDTH, seed=1)))
    return features, weight


def test_its_mean_is_the_diagonal_of_the_hessian():
    features, weight = problem()
    generator = torch.Generator().manual_seed(0)

    def loss_fn():
        labels = sample_labels(features, weight, VOCABULARY, torch.rand(TOKENS, generator=generator))
        return cross_entropy(features, weight, labels, VOCABULARY)[0]

    mean = sum(estimate([loss_fn], [weight], TOKENS)[0] for _ in range(1000)) / 1000

    def exact_loss(w):
        return torch.nn.functional.cross_entropy(features @ w[:VOCABULARY].t(), torch.zeros(TOKENS, dtype=torch.long))

    hessian = torch.autograd.functional.hessian(exact_loss, weight.detach())
    diagonal = hessian.reshape(PADDED * WIDTH, -1).diagonal().reshape(PADDED, WIDTH)
    assert np.linalg.norm(mean - diagonal) < 0.1 * np.linalg.norm(diagonal)
    assert not mean[VOCABULARY:].any()


def test_nothing_leaks_into_grad():
    features, weight = problem()
    cross_entropy(features, weight, torch.zeros(TOKENS, dtype=torch.long), VOCABULARY)[0].backward()
    before = weight.grad.clone()
    with torch.no_grad():  # as Lightning may call it
        (diagonal,) = estimate([lambda: (weight**3).sum()], [weight], 2)
    assert torch.equal(weight.grad, before)
    assert not diagonal.requires_grad
    torch.testing.assert_close(diagonal, 2 * (3 * weight.detach() ** 2) ** 2)


@pytest.mark.parametrize("chunk", [None, 7, 1000])
def test_labels_follow_the_softmax(chunk):
    """Also for the outermost draws, which give symbols of the tokenizer."""
    features, weight = problem()
    draws = torch.rand(6000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    draws[0], draws[1] = 0.0, 1.0 - 2**-53
    labels = sample_labels(features[:1].expand(6000, -1), weight, VOCABULARY, draws, chunk=chunk)
    wanted = (features[:1] @ weight[:VOCABULARY].t()).softmax(-1)[0]
    assert labels[:2].tolist() == [0, VOCABULARY - 1]
    assert (labels.bincount(minlength=VOCABULARY) / 6000 - wanted).abs().max() < 0.02


def test_draws_are_a_function_of_the_place_in_the_run():
    first, again, other_step, other_seed = (
        uniforms(seed, step, [5, 9], 7) for seed, step in ((1, 2), (1, 2), (1, 3), (2, 2))
    )
    assert torch.equal(first, again)
    assert torch.equal(first[7:], uniforms(1, 2, [9], 7))  # wherever the sample lies in a batch
    assert len({tuple(draws.tolist()) for draws in (first, other_step, other_seed)}) == 3


def test_micro_batches_count_as_one_batch():
    """Not the mean of their estimates: the square of their mean gradient."""
    features, weight = problem()
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    whole = estimate([lambda: cross_entropy(features, weight, labels, VOCABULARY)[0]], [weight], TOKENS)[0]
    halves = [
        lambda part=part: cross_entropy(features[part], weight, labels[part], VOCABULARY)[0]
        for part in (slice(0, 3), slice(3, 6))
    ]
    torch.testing.assert_close(estimate(halves, [weight], TOKENS)[0], whole)


def test_an_estimate_is_wanted_every_tenth_step_and_used_once():
    """Without it, the step is refused: it would be sign descent under another name."""
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    parameter.grad = torch.full((2, 2), 1e-3)
    stepper = optimizer("sophia", [parameter])
    with pytest.raises(RuntimeError, match="w need an estimate of the Hessian's diagonal"):
        stepper.step()
    with pytest.raises(FloatingPointError, match="the estimate of the Hessian of w: NaN"):
        stepper.give_hessian({"w": torch.tensor([[1.0, torch.nan], [0.0, 0.0]])})
    assert (parameter == 1).all()
    assert not stepper.state
    for step in range(25):
        assert list(stepper.wants_hessian()) == (["w"] if step % 10 == 0 else [])
        if step % 10 == 0:
            stepper.give_hessian({"w": torch.full((2, 2), 100.0)})
        stepper.step()
        estimates = step // 10 + 1
        held = stepper.state[parameter]["hessian"]
        torch.testing.assert_close(held, torch.full((2, 2), 100 * (1 - 0.99**estimates)))
