"""The condition in real training of the real model, where the vocabulary is longer than the width."""

import numpy as np
import pytest
import torch

from mup_lightning.config.schema import ModelConfig
from mup_lightning.model.gpt2 import build
from mup_lightning.optim.optimizer import build_optimizer
from mup_lightning.optim.spectral_norm import rms_operator
from mup_lightning.spectral.families import FAMILIES
from mup_lightning.spectral.recipe import RecipeConfig, derive
from mup_lightning.spectral.roles import Role

WIDTHS = (32, 64, 128)
VOCABULARY = 512
RATES = {"muon_kimi": 2**-6, "muon": 2**-5, "sso": 2**-5, "adamw": 2**-7, "lion": 2**-7}
MATRICES = ("token.weight", "head.weight", "blocks.1.attention.out.weight", "blocks.1.mlp.down.weight")


def text():
    """Windows of tokens as frequent as words are: the theory's gradients are of low rank, those of noise are not."""
    frequencies = 1 / torch.arange(1, VOCABULARY + 1, dtype=torch.float64) ** 1.5
    return torch.multinomial(frequencies, 8 * 17, True, generator=torch.Generator().manual_seed(0)).view(8, 17)


def second_step(optimizer, width):
    """α‖ΔW‖_R of some matrices, α‖W‖_R, and the RMS of α ΔW h at the head, in the second step. (The first one of SSO
    also brings the weights onto their spheres.)"""
    base = {"base_width": 32, "base_depth": 2, "lr": RATES[optimizer], "init_std": 0.1}
    base |= {"optimizer": optimizer, "pure": FAMILIES[optimizer].whole_matrix}
    recipe = derive(RecipeConfig(**base), width, 2)
    shape = ModelConfig(width=width, depth=2, head_size=16, context=16, vocab_size=VOCABULARY, tied=False)
    model, window = build(shape, recipe, seed=1), text()
    stepper = build_optimizer(dict(model.named_parameters()), model.parameter_info, recipe, {})
    for _ in range(2):
        before = {name: model.get_parameter(name).detach().clone() for name in MATRICES}
        features = model.features(window[:, :-1]).detach()  # with the output multiplier
        stepper.zero_grad()
        model.loss(window).backward()
        stepper.step()
    alpha = {Role.INPUT: recipe.multipliers.input, Role.OUTPUT: recipe.multipliers.output, Role.HIDDEN: 1.0}
    found = {}
    for name in MATRICES:
        info, after = model.parameter_info[name], model.get_parameter(name).detach()
        for key, matrix in ((name, after - before[name]), (f"{name} itself", after)):
            spectral = float(torch.linalg.matrix_norm(matrix.double(), 2))
            found[key] = alpha[info.role] * rms_operator(spectral, info)
    change = features @ (model.head.weight.detach() - before["head.weight"]).t()
    return found | {"logits": float(change.square().mean().sqrt())}


@pytest.mark.parametrize("optimizer", RATES)
def test_updates_keep_their_size_where_the_vocabulary_is_longer_than_the_width(optimizer):
    found = [second_step(optimizer, width) for width in WIDTHS]
    slopes = {key: np.polyfit(np.log(WIDTHS), np.log([at[key] for at in found]), 1)[0] for key in found[0]}
    held = [f"{name} itself" for name in MATRICES] if optimizer == "sso" else []  # on a sphere
    assert {key: slope for key, slope in slopes.items() if key in (*MATRICES, "logits", *held)} == pytest.approx(
        dict.fromkeys([*MATRICES, "logits", *held], 0.0), abs=0.1
    )
