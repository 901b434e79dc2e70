"""Points of the loss are means over all steps since the last one, also where a resume lies between."""

import math
from pathlib import Path

import pytest
import torch

from mup_lightning.callbacks.losses import Losses
from mup_lightning.callbacks.step import StepCallback
from mup_lightning.errors import UserError
from mup_lightning.studies.features.report import read_scalars
from mup_lightning.training.evaluate import evaluate
from mup_lightning.training.train import train
from tests.conftest import write_corpus

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


def test_a_mixture_shows_the_loss_of_each_source_and_resumes_to_the_bit(tiny, tmp_path):
    """Points are means over the sequences of a source; another mixture is another training."""
    other = write_corpus(tmp_path / "other", seed=5)
    changes = {"trainer.log_every": 4, "trainer.checkpoint_every": 6, "trainer.validate_every": 5}
    changes |= {"data.val_tokens": None}
    mixture = {str(tiny().data.path): 0.75, str(other): 0.25}
    changes |= {"data.path": mixture, "trainer.feature_norms_every": 0, "trainer.noise_scale_every": 0}
    names = [str(folder) for folder in mixture]  # both are called "prepared"
    listener = Sequences()
    straight = train(tiny(**changes), callbacks=[listener], progress=False)
    curves = read_scalars(Path(straight.tensorboard))
    for source, name in enumerate(names):
        curve = dict(curves[f"train/loss/{name}"])
        for last, steps in ((4, range(1, 5)), (8, range(5, 9)), (10, range(9, 11))):
            own = [loss for step in steps for which, loss in listener.seen[step] if which == source]
            assert curve[last] == pytest.approx(sum(own) / len(own), rel=1e-5)
    for step, loss in curves["validation/loss"]:
        own = [dict(curves[f"validation/loss/{name}"])[step] for name in names]
        assert own[0] != own[1]
        assert loss == pytest.approx(0.75 * own[0] + 0.25 * own[1], rel=1e-6)
    checkpoint = str(Path(straight.checkpoint).parent / "step_00000006")
    fork = train(tiny(**changes, **{"run.name": "fork", "run.resume": checkpoint}), progress=False)
    again = read_scalars(Path(fork.tensorboard))
    assert all(again[tag] == [point for point in curves[tag] if point[0] > 6] for tag in curves if "/loss" in tag)
    assert fork.validation_loss == straight.validation_loss
    with pytest.raises(
        UserError, match=r"was trained on .*prepared \(0\.75\), .* name a prepared corpus: --data FOLDER"
    ):
        evaluate(Path(straight.checkpoint))
    losses = [evaluate(Path(straight.checkpoint), name)["validation_loss"] for name in names]
    assert 0.75 * losses[0] + 0.25 * losses[1] == pytest.approx(straight.validation_loss)
    for folder in (names[0], {names[0]: 0.5, names[1]: 0.5}):
        with pytest.raises(UserError, match=r'data\.mixture: \["3/4", "1/4"\] in the checkpoint, .*now'):
            train(tiny(**changes | {"data.path": folder, "run.name": "no", "run.resume": checkpoint}), progress=False)


class Sequences(StepCallback):
    """Keeps (source, loss) of every sequence, computed anew."""

    def __init__(self):
        self.seen = {}

    def on_step_start(self, trainer, module, step):
        self.seen[step] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        with torch.no_grad():
            rows = zip(batch["sources"].tolist(), batch["tokens"], strict=True)
            own = [(which, float(pl_module.model.loss(row[None]))) for which, row in rows]
            self.seen[trainer.global_step + 1] += own
