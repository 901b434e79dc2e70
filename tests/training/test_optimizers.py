"""Every optimizer trains the tiny model through the whole of training."""

import pytest

from mup_lightning.spectral.families import FAMILIES
from mup_lightning.training.train import train
from tests import families

MATRIX_OPTIMIZERS = [name for name, family in FAMILIES.items() if family.whole_matrix]
UNTRAINED = 5.549  # loss of the tiny model as it is drawn: ln 256, and a little
FEW = {f"trainer.{what}_every": 0 for what in ("checkpoint", "validate", "feature_norms", "spectral_norms")}
FEW |= {"trainer.max_steps": 30, "data.micro_batch": 8, "data.val_tokens": None}


@pytest.mark.parametrize("optimizer", FAMILIES)
@pytest.mark.parametrize("family", families.FAMILIES)
def test_the_frequencies_are_learnt(tiny, family, optimizer):
    lr = {"recipe.optimizer": optimizer, "recipe.lr": 0.5 if optimizer == "sgd" else 2**-5, "recipe.aux_lr_factor": 1.0}
    switches = families.model(families.FAMILIES[family])
    result = train(tiny(**FEW, **lr, **switches), keep=False)
    assert result.validation_loss < result.unigram_loss + 0.1


@pytest.mark.parametrize("optimizer", MATRIX_OPTIMIZERS)
def test_the_matrices_inside_blocks_learn_alone_and_pure_mode_learns_the_others_too(tiny, optimizer):
    """With the AdamW half all but frozen, only what the matrix optimizer does lowers the loss."""
    lr = {"recipe.lr": 2**-7 if optimizer == "soap" else 2**-4, "recipe.aux_lr_factor": 1e-6}
    losses = [
        train(tiny(**FEW, **lr, **{"recipe.optimizer": optimizer}, **mode), keep=False).validation_loss
        for mode in ({"model.tied": True}, {"model.tied": False}, {"model.tied": False, "recipe.pure": True})
    ]
    assert losses[0] < UNTRAINED - 0.15
    assert losses[2] < losses[1] - 0.1
