"""The look at updates while training sees a rule that is no longer itself."""

import pytest

from mup_lightning.callbacks.update_check import UpdateCheck
from mup_lightning.errors import UserError
from mup_lightning.optim import muon
from mup_lightning.training.train import train


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
