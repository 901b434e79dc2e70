"""Norms of features and gradients, against those of a plain forward and backward pass; and of Muon's updates."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from mup_lightning.callbacks.noise_scale import estimate
from mup_lightning.callbacks.norms import UpdateCheck, tag
from mup_lightning.data.datamodule import TokenDataModule
from mup_lightning.errors import UserError
from mup_lightning.model.taps import NormRecorder
from mup_lightning.optim import muon
from mup_lightning.spectral.roles import Role
from mup_lightning.studies.features.report import read_scalars
from mup_lightning.training.module import GPT2Module
from mup_lightning.training.train import train

TAG = "train/gradient_norm"


def micro_batches(config):
    """The tokens of the first step's micro-batches."""
    data = TokenDataModule(config.data, config.model.context, config.seed, config.trainer.max_steps)
    data.setup()
    batches = iter(data.train_dataloader())
    return [next(batches)["tokens"] for _ in range(config.data.batch_size // config.data.micro_batch)]


def test_the_first_feature_norms_are_the_initialisation_s_on_the_first_micro_batch(tiny):
    config = tiny()
    curves = read_scalars(Path(train(config, progress=False).tensorboard))
    assert [step for step, _ in curves["features/residual/layer_001"]] == [0, 3, 6, 9]
    recorder = NormRecorder()
    GPT2Module(config).model.loss(micro_batches(config)[0], recorder)
    for place, norm in recorder.norms().items():
        assert curves[tag(*place)][0] == (0, pytest.approx(norm, rel=1e-5)), place


def squares(config, windows):
    """Rule -> the squared gradient of its parameters at the start, in float64."""
    model, found = GPT2Module(config).model.double(), {"muon_kimi": 0.0, "adamw": 0.0}
    F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten()).backward()
    for name, parameter in model.named_parameters():
        rule = "muon_kimi" if model.parameter_info[name].role is Role.HIDDEN else "adamw"
        found[rule] += float(parameter.grad.square().sum())
    return found


@pytest.mark.parametrize(("clip", "tied"), [(0.0, True), (0.01, False), (100.0, True)])
def test_the_first_gradients_are_those_of_a_plain_backward_pass(tiny, clip, tied):
    """Their norms, and the noise scale, which compares those of 8 sequences and of the first 2 of them."""
    changes = {"trainer.log_every": 1, "trainer.max_steps": 2, "trainer.gradient_clip": clip, "model.tied": tied}
    config = tiny(**changes, **{"recipe.scale_clip": False, "trainer.noise_scale_every": 1})
    curves = read_scalars(Path(train(config, progress=False).tensorboard))
    windows = torch.cat(micro_batches(config))
    of_all, of_part = squares(config, windows), squares(config, windows[:2])
    square, trace = estimate(2 * 16, 8 * 16, sum(of_part.values()), sum(of_all.values()))
    scale = {"gradient_square": square, "variance": trace, "tokens": trace / square, "batch": 128.0}
    for name, value in scale.items():
        assert curves[f"noise_scale/{name}"][0] == (1, pytest.approx(value, rel=1e-4)), name
    whole = sum(of_all.values()) ** 0.5
    factor = clip / whole if 0 < clip < whole else 1.0
    wanted = {"": whole} | {f"/{rule}": own**0.5 for rule, own in of_all.items()}
    for rule, norm in wanted.items():
        assert curves[f"{TAG}{rule}"][0] == (1, pytest.approx(norm, rel=1e-5)), rule
        assert curves[f"{TAG}/after_clipping{rule}"][0] == (1, pytest.approx(norm * factor, rel=1e-4)), rule
    assert sum(tag.startswith(TAG) for tag in curves) == 2 * len(wanted)


@pytest.mark.parametrize("optimizer", ["muon", "muon_kimi", "soap"])
def test_an_orthogonal_update_is_seen_as_one_and_others_are_not_looked_at(tiny, monkeypatch, optimizer):
    looks, original = [], UpdateCheck.on_step_end

    def on_step_end(self, trainer, module, step):
        original(self, trainer, module, step)
        looks.append(dict(self.largest))

    monkeypatch.setattr(UpdateCheck, "on_step_end", on_step_end)
    train(tiny(**{"recipe.optimizer": optimizer, "trainer.update_check_every": 4}), progress=False)
    assert len(looks) == 10
    if optimizer == "soap":
        assert not any(looks)
        return
    assert looks[0].keys() == looks[4].keys() == looks[8].keys() > {"blocks.0.attention.qkv.weight"}
    assert looks[0] == looks[3] != looks[4]
    assert all(0.65 < size < 1.22 for look in looks for size in look.values())


def test_a_rule_that_does_not_orthogonalise_ends_the_run(tiny, monkeypatch):
    monkeypatch.setattr(muon, "orthogonalise", lambda sources, *_: sources / sources.abs().mean())
    with pytest.raises(UserError, match=r"step 1: updates that should be orthogonal are not.*qkv\.weight"):
        train(tiny(), progress=False)
