"""Norms of the gradients by rule, against gradients that a plain backward pass gives."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from mup_lightning.data.datamodule import TokenDataModule
from mup_lightning.spectral.roles import Role
from mup_lightning.studies.features.runs import read_scalars
from mup_lightning.training.module import GPT2Module
from mup_lightning.training.train import train

TAG = "train/gradient_norm"


def first_gradients(config):
    """Role -> the squares of the first step's gradients, added up in float64: the whole batch at once."""
    data = TokenDataModule(config.data, config.model.context, config.seed, config.trainer.max_steps)
    data.setup()
    batches = iter(data.train_dataloader())
    windows = torch.cat([next(batches)["tokens"] for _ in range(config.data.batch_size // config.data.micro_batch)])
    model = GPT2Module(config).model.double()
    F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten()).backward()
    squares = dict.fromkeys(Role, 0.0)
    for name, parameter in model.named_parameters():
        squares[model.parameter_info[name].role] += float(parameter.grad.square().sum())
    return squares


@pytest.mark.parametrize("clip", [0.0, 0.01, 100.0])
def test_norms_are_those_of_a_plain_backward_pass(tiny, clip):
    config = tiny(**{"trainer.log_every": 1, "trainer.max_steps": 2, "trainer.gradient_clip": clip})
    curves = read_scalars(Path(train(config, progress=False).tensorboard))
    squares = first_gradients(config)
    hidden, others = squares[Role.HIDDEN], sum(value for role, value in squares.items() if role is not Role.HIDDEN)
    whole = (hidden + others) ** 0.5
    factor = clip / whole if 0 < clip < whole else 1.0
    wanted = {"": whole, "/muon_kimi": hidden**0.5, "/adamw": others**0.5}
    for rule, norm in wanted.items():
        assert curves[f"{TAG}{rule}"][0] == (1, pytest.approx(norm, rel=1e-5)), rule
        assert curves[f"{TAG}/after_clipping{rule}"][0] == (1, pytest.approx(norm * factor, rel=1e-4)), rule
    assert {tag for tag in curves if tag.startswith(TAG)} == {
        f"{TAG}{clipped}{rule}" for rule in wanted for clipped in ("", "/after_clipping")
    }


def test_it_measures_where_a_point_is_due_alone(tiny, monkeypatch):
    from mup_lightning.callbacks import gradient_norms

    looks = []
    original = gradient_norms._gradients
    monkeypatch.setattr(gradient_norms, "_gradients", lambda *arguments: looks.append(1) or original(*arguments))
    config = tiny(**{"recipe.optimizer": "adamw", "trainer.log_every": 4})
    curves = read_scalars(Path(train(config, progress=False).tensorboard))
    assert [step for step, _ in curves[f"{TAG}/adamw"]] == [4, 8, 10]
    groups = len(GPT2Module(config).configure_optimizers()["optimizer"].param_groups)
    assert len(looks) == 3 * groups
