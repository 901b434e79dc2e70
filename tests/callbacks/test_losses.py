"""Points of the loss are means over all steps since the last one, also where a resume lies between."""

import math
from pathlib import Path

import pytest
import torch

from mup_lightning.callbacks.losses import Losses
from mup_lightning.callbacks.step import StepCallback
from mup_lightning.studies.features import read_scalars
from mup_lightning.training.train import train

TAGS = ("train/loss", "train/bits_per_byte")


class Listener(StepCallback):
    """Keeps every step's loss, and the text of its targets, read at once."""

    def __init__(self):
        self.losses, self.texts = {}, {}

    def on_step_end(self, trainer, module, step):
        self.losses[step] = float(module.step_loss())
        self.texts[step] = bytes(
            torch.cat([batch["tokens"][:, 1:] for _, batch in module.micro_losses]).flatten().tolist()
        )


def test_a_point_is_the_mean_since_the_last_one_and_a_resume_changes_none(tiny, monkeypatch):
    """The checkpoint at step 6 lies between the points at 4 and 8. Reading a loss elsewhere would make a GPU wait."""
    listener, exchanges, original = Listener(), [], Losses._exchanged
    monkeypatch.setattr(
        Losses, "_exchanged", lambda self, trainer: exchanges.append(trainer.global_step) or original(self, trainer)
    )
    changes = {"trainer.log_every": 4, "trainer.checkpoint_every": 6, "trainer.feature_norms_every": 0}
    straight = train(tiny(**changes), callbacks=[listener], progress=False)
    assert set(exchanges) == {4, 6, 8, 10}
    both = [dict(read_scalars(Path(straight.tensorboard))[tag]) for tag in TAGS]
    curve = both[0]
    assert list(curve) == [4, 8, 10]
    for last, steps in ((4, range(1, 5)), (8, range(5, 9)), (10, range(9, 11))):
        nats = sum(listener.losses[step] for step in steps)
        assert curve[last] == pytest.approx(nats / len(steps), rel=1e-6)
        text = b"".join(listener.texts[step] for step in steps).replace(b"\0", b"")
        assert len(text) < 128 * len(steps)
        assert both[1][last] == pytest.approx(nats * 128 / math.log(2) / len(text), rel=1e-6)
    checkpoint = Path(straight.checkpoint).parent / "step_00000006"
    fork = train(tiny(**changes, **{"run.name": "fork", "run.resume": str(checkpoint)}), progress=False)
    for tag, points in zip(TAGS, both, strict=True):
        assert dict(read_scalars(Path(fork.tensorboard))[tag]) == {step: points[step] for step in (8, 10)}
