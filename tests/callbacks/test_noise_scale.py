"""The gradient noise scale: its estimators against a model whose G and Σ are known, and its place in training."""

import weakref
from pathlib import Path

import pytest
import torch

from mup_lightning.callbacks.noise_scale import NoiseScale, estimate, gradient_square
from mup_lightning.files import read_json, write_json
from mup_lightning.studies.features.report import read_scalars
from mup_lightning.training.run import RunFolder
from mup_lightning.training.train import train
from tests.callbacks.test_losses import Listener

OFTEN = {"trainer.noise_scale_every": 1, "trainer.log_every": 1}


def test_its_parts_are_unbiased():
    """Loss ½|w - goal|² + noise · w: at w = 0, G is -goal, Σ the covariance of the noise. Over 1200 batches."""
    part, batch, draws = 3, 12, 1200
    goal, deviation = (torch.tensor([own] * 30, dtype=torch.float64).flatten() for own in ((0.5, -0.25), (1.0, 0.5)))
    w = torch.nn.Parameter(torch.zeros(60, dtype=torch.float64))
    noise = torch.randn(draws, batch, 60, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * deviation

    def square(samples_BC):  # the parameter is used twice, as tied embeddings are
        return float(gradient_square(lambda: ((w - goal) ** 2).sum() / 2 + (samples_BC @ w).mean(), [w]))

    found = torch.tensor([estimate(part, batch, square(own[:part]), square(own)) for own in noise])
    wanted = torch.tensor([9.375, 37.5])
    errors = found.std(0) / draws**0.5
    assert ((found.mean(0) - wanted).abs() < 4 * errors).all(), (found.mean(0), wanted)
    assert (errors < wanted / 12).all()  # less would not see a wrong factor


def test_a_gradient_is_there_one_parameter_at_a_time():
    """And nothing leaks into .grad, nor stays hooked."""
    weights, made, alive = [torch.nn.Parameter(torch.full((10,), 2.0)) for _ in range(4)], [], []

    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, weight):
            return (weight**3).sum()

        @staticmethod
        def backward(ctx, of_sum):
            alive.append(sum(own() is not None for own in made))
            gradient = of_sum * torch.full((10,), 12.0)
            made.append(weakref.ref(gradient))
            return gradient

    with torch.no_grad():  # as Lightning may call it
        square = gradient_square(
            lambda: sum(Cube.apply(weight) for weight in weights), [*weights, torch.nn.Parameter(torch.ones(1))]
        )
    assert float(square) == pytest.approx(4 * 10 * 12.0**2)
    assert alive == [0] * 4
    assert all(weight.grad is None and not weight._backward_hooks for weight in weights)


def test_it_changes_nothing_and_survives_a_resume(tiny):
    """With dropout, and with Sophia's estimate, which draws numbers in a pass of its own; nor do other monitors."""
    changes = {"model.dropout": 0.1, "trainer.max_steps": 8}
    changes |= {"recipe.optimizer": "sophia", "rules.sophia.hessian_every": 1}
    monitors = [f"trainer.{what}_every" for what in ("noise_scale", "spectral_norms", "feature_norms")]
    listeners, results = [Listener(), Listener()], []
    for every, listener in zip((0, 2), listeners, strict=True):
        own = dict.fromkeys(monitors, every) | {"run.name": f"every-{every}"}
        results.append(train(tiny(**changes, **own), callbacks=[listener], progress=False))
    assert listeners[0].losses == listeners[1].losses
    assert (results[0].noise_scale is None, results[0].validation_loss) == (True, results[1].validation_loss)
    half = {"run.resume": str(Path(results[1].checkpoint).with_name("step_00000004")), "run.name": "half"}
    again = train(tiny(**changes, **half, **{"trainer.noise_scale_every": 2}), progress=False)
    old, new = (read_scalars(Path(result.tensorboard)) for result in (results[1], again))
    assert new["noise_scale/variance"] == old["noise_scale/variance"][2:]
    assert again.noise_scale == results[1].noise_scale
    folder = RunFolder(tiny(**{"run.name": "every-2"}))
    assert folder.finished_result().noise_scale == results[1].noise_scale
    older = read_json(folder.result_file, "a result")
    del older["noise_scale"]
    write_json(folder.result_file, older)
    assert folder.finished_result().noise_scale is None
    # A checkpoint that has none.
    before = {"run.resume": str(Path(results[0].checkpoint).with_name("step_00000004")), "run.name": "before"}
    train(tiny(**changes, **before, **{"trainer.noise_scale_every": 2}), progress=False)


def test_neither_how_a_batch_is_cut_nor_its_precision_matters(tiny):
    found = []
    for number, own in enumerate(({}, {"data.micro_batch": 2}, {"trainer.precision": "bf16"})):
        config = tiny(**OFTEN, **{"trainer.max_steps": 2, "run.name": str(number)}, **own)
        found.append(dict(read_scalars(Path(train(config, progress=False).tensorboard))["noise_scale/variance"]))
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    assert found[2] == pytest.approx(found[0], rel=0.05)


def test_one_sequence_has_no_half(tiny, capsys):
    one = {"data.batch_size": 1, "data.micro_batch": 1, "trainer.max_steps": 2}
    assert train(tiny(**OFTEN, **one), progress=False).noise_scale is None
    assert capsys.readouterr().out.count("the gradient noise scale needs two sequences: it is not measured") == 1
    assert NoiseScale(tiny(**{"data.batch_size": 3, "data.micro_batch": 3})).sequences == 1


def test_what_cannot_be_told_from_infinity_is_unknown(tiny):
    noise = NoiseScale(tiny())
    assert noise.tokens is None
    for square, trace, wanted in ((-1.0, 6.0, None), (3.0, 6.0, 6.0), (float("nan"), 1.0, None)):
        noise.load_state_dict({"found": [(square, trace)]})  # the mean of all so far
        assert noise.tokens == wanted
