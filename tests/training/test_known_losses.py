"""Losses of tiny trainings as they have always been: a change of the numbers of training is never an accident."""

import lightning.pytorch as pl
import pytest

from mup_lightning.training.train import train
from tests import families

EVERY = families.model(families.LLAMA | {"qk_norm": True, "qk_gain": True})
KNOWN = {
    ("gpt2", "adamw"): [5.554852, 5.120054, 4.864233, 4.723974, 4.716007],
    ("gpt2", "muon_kimi"): [5.554852, 5.147727, 4.876688, 4.737182, 4.727848],
    ("llama", "adamw"): [5.54783, 5.134524, 4.887547, 4.732356, 4.724192],
    ("llama", "muon_kimi"): [5.54783, 5.236348, 4.98253, 4.845613, 4.830751],
    ("llama with gains", "muon_kimi"): [5.547902, 5.232266, 4.977401, 4.834301, 4.821117],
    ("mixtral", "adamw"): [5.54779, 5.135185, 4.888592, 4.73244, 4.723903],
    ("mixtral", "muon_kimi"): [5.54779, 5.236713, 4.983127, 4.846688, 4.831793],
}
"""Family and optimizer -> the losses of every second step, and the validation loss."""
SWITCHES = {"gpt2": {}, "llama": families.model(families.LLAMA), "llama with gains": EVERY}
SWITCHES["mixtral"] = families.model(families.MIXTRAL)


class Losses(pl.Callback):
    """Keeps the loss of every step's last micro-batch."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        if len(pl_module.micro_losses) == trainer.accumulate_grad_batches:
            self.seen.append(float(pl_module.micro_losses[-1][0]))


@pytest.mark.parametrize(("family", "optimizer"), KNOWN)
def test_losses_are_known(tiny, family, optimizer):
    """To 1e-4: other processors add in another order. At the same processor they are equal to the bit."""
    losses, every = Losses(), {f"trainer.{what}_every": 0 for what in ("checkpoint", "validate", "feature_norms")}
    length = {"trainer.max_steps": 8, "data.val_tokens": None}
    config = tiny(**SWITCHES[family], **every, **length, **{"recipe.optimizer": optimizer})
    result = train(config, callbacks=[losses], progress=False, keep=False)
    assert [*losses.seen[::2], result.validation_loss] == pytest.approx(KNOWN[family, optimizer], abs=1e-4)
