"""Every optimizer trains the tiny model through the whole of training."""

import pytest

from mup_lightning.spectral.families import FAMILIES
from mup_lightning.training.train import train

OPTIMIZERS = tuple(FAMILIES)
MATRIX_OPTIMIZERS = [name for name in OPTIMIZERS if FAMILIES[name].whole_matrix]
UNTRAINED = 5.549  # loss of the tiny model as it is drawn: ln 256, and a little


def loss_after_thirty_steps(tiny, optimizer, lr, aux_lr_factor, **keys):
    config = tiny(
        **{
            "recipe.optimizer": optimizer,
            "recipe.lr": lr,
            "recipe.aux_lr_factor": aux_lr_factor,
            "trainer.max_steps": 30,
            "trainer.checkpoint_every": 0,
            "trainer.validate_every": 0,
            "trainer.feature_norms_every": 0,
            **keys,
        }
    )
    result = train(config)
    return result.validation_loss, result.unigram_loss


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_frequencies_are_learnt(tiny, optimizer):
    loss, unigram = loss_after_thirty_steps(tiny, optimizer, 0.5 if optimizer == "sgd" else 2**-5, 1.0)
    assert loss < unigram + 0.1


@pytest.mark.parametrize("optimizer", MATRIX_OPTIMIZERS)
def test_the_matrices_inside_blocks_learn_alone(tiny, optimizer):
    """With the AdamW half all but frozen, only what the matrix optimizer does lowers the loss."""
    loss, _ = loss_after_thirty_steps(tiny, optimizer, 2**-7 if optimizer == "soap" else 2**-4, 1e-6)
    assert loss < UNTRAINED - 0.15


@pytest.mark.parametrize("optimizer", MATRIX_OPTIMIZERS)
def test_pure_mode_learns_embeddings_and_head_too(tiny, optimizer):
    pure = {"recipe.pure": True, "model.tied": False}
    lr = 2**-7 if optimizer == "soap" else 2**-4
    loss, _ = loss_after_thirty_steps(tiny, optimizer, lr, 1e-6, **pure)
    hidden_alone, _ = loss_after_thirty_steps(tiny, optimizer, lr, 1e-6, **{"model.tied": False, "run.name": "other"})
    assert loss < hidden_alone - 0.1
