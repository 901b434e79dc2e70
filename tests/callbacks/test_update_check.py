"""The look at updates while training sees a rule that is no longer itself."""

import pytest

from mup_lightning.callbacks.update_check import UpdateCheck
from mup_lightning.errors import UserError
from mup_lightning.optim import muon
from mup_lightning.training.train import train


@pytest.fixture
def seen(monkeypatch):
    """What every look found: parameter -> largest singular value over what the rule promises."""
    looks = []
    original = UpdateCheck.on_step_end

    def on_step_end(self, trainer, module, step):
        original(self, trainer, module, step)
        looks.append(dict(self.largest))

    monkeypatch.setattr(UpdateCheck, "on_step_end", on_step_end)
    return looks


@pytest.mark.parametrize("optimizer", ["muon", "muon_kimi"])
def test_an_orthogonal_update_is_seen_as_one(tiny, seen, optimizer):
    train(tiny(**{"recipe.optimizer": optimizer, "trainer.update_check_every": 4}), progress=False)
    assert len(seen) == 10
    assert seen[0].keys() == seen[4].keys() == seen[8].keys()
    assert {"blocks.0.attention.qkv.weight"} < seen[0].keys()
    assert seen[0] == seen[3] != seen[4]
    assert all(0.65 < size < 1.22 for look in seen for size in look.values())


def test_other_rules_are_none_of_its_business(tiny, seen):
    train(tiny(**{"recipe.optimizer": "soap", "trainer.update_check_every": 4}), progress=False)
    assert not any(seen)


def test_a_rule_that_does_not_orthogonalise_ends_the_run(tiny, monkeypatch):
    monkeypatch.setattr(muon, "orthogonalise", lambda sources, *_: sources / sources.abs().mean())
    with pytest.raises(UserError, match=r"step 1: updates that should be orthogonal are not.*qkv\.weight"):
        train(tiny(), progress=False)
