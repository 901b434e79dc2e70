"""Points of the loss are means over all steps since the last one, also where a resume lies between."""

from pathlib import Path

import pytest

from mup_lightning.callbacks.losses import StepLosses
from mup_lightning.callbacks.step import StepCallback
from mup_lightning.studies.features.runs import read_scalars
from mup_lightning.training.train import train


class Listener(StepCallback):
    """Keeps every step's loss, read at once."""

    def __init__(self):
        self.losses = {}

    def on_step_end(self, trainer, module, step):
        self.losses[step] = float(module.step_loss())


def test_a_point_is_the_mean_since_the_last_one(tiny):
    listener = Listener()
    result = train(tiny(**{"trainer.log_every": 4}), callbacks=[listener], progress=False)
    curve = dict(read_scalars(Path(result.tensorboard))["train/loss"])
    assert list(curve) == [4, 8, 10]
    for last, steps in ((4, range(1, 5)), (8, range(5, 9)), (10, range(9, 11))):
        assert curve[last] == pytest.approx(sum(listener.losses[step] for step in steps) / len(steps), rel=1e-6)


def test_a_resume_between_two_points_changes_no_point(tiny):
    """The checkpoint at step 6 lies between the points at 4 and 8."""
    changes = {"trainer.log_every": 4, "trainer.checkpoint_every": 6, "trainer.feature_norms_every": 0}
    straight = train(tiny(**changes, **{"run.name": "straight"}), progress=False)
    checkpoint = Path(straight.checkpoint).parent / "step_00000006"
    fork = train(tiny(**changes, **{"run.name": "fork", "run.resume": str(checkpoint)}), progress=False)
    wanted, found = (dict(read_scalars(Path(r.tensorboard))["train/loss"]) for r in (straight, fork))
    assert found == {step: loss for step, loss in wanted.items() if step > 6}


def test_losses_are_read_at_points_only(tiny, monkeypatch):
    """Reading one makes a GPU wait."""
    exchanges = []
    original = StepLosses._exchanged

    def counted(self, trainer):
        exchanges.append(trainer.global_step)
        return original(self, trainer)

    monkeypatch.setattr(StepLosses, "_exchanged", counted)
    train(tiny(**{"trainer.log_every": 5, "trainer.checkpoint_every": 0}), keep=False, progress=False)
    assert exchanges == [5, 10]
