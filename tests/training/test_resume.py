"""Resume: bit-identical after a crash, refused where it could not be, an older checkpoint offered for a damaged one."""

import errno
import json
import resource
import shutil
from pathlib import Path

import pytest
import torch

from mup_lightning.callbacks.curves import Curves
from mup_lightning.errors import UserError
from mup_lightning.training import checkpoint as checkpoints
from mup_lightning.training.run_folder import RunFolder
from mup_lightning.training.tensor_files import write
from mup_lightning.training.tensors import Shards
from mup_lightning.training.train import train
from tests.conftest import write_corpus
from tests.training.reference import assert_same_training, weights_of


class CrashError(RuntimeError):
    """Stands for a power cut."""


def crash_at(monkeypatch, step):
    """Make the run die right after a step, before anything is logged or saved."""
    original = Curves.on_step_end

    def on_step_end(self, trainer, module, now):
        if now == step:
            raise CrashError
        original(self, trainer, module, now)

    monkeypatch.setattr(Curves, "on_step_end", on_step_end)


@pytest.fixture
def crashed(tiny, monkeypatch):
    """A run of 10 steps that died after step 9, with checkpoints at 4 and 8; returns what makes its configuration."""

    def make(**changes):
        with monkeypatch.context() as patch:
            crash_at(patch, 9)
            with pytest.raises(CrashError):
                train(tiny(**changes))
        return lambda **more: tiny(**{**changes, **more})

    return make


def assert_equal(first, second):
    """Weights and optimizer states are equal to the bit."""
    a, b = Shards(Path(first)), Shards(Path(second))
    assert a.quantities == b.quantities
    for name, quantities in a.quantities.items():
        assert "weight" in quantities
        assert len(quantities) > 1
        for quantity in quantities:
            assert torch.equal(a.read(quantity, name), b.read(quantity, name)), (name, quantity)


@pytest.mark.parametrize("optimizer", ["muon_kimi", "adamw"])
def test_resume_is_bit_identical_with_dropout(crashed, tiny, optimizer):
    changes = {"recipe.optimizer": optimizer, "model.dropout": 0.1}
    straight = train(tiny(**changes, **{"run.name": "straight"}))
    config = crashed(**changes)
    resumed = train(config(**{"run.resume": "last"}))
    assert resumed.steps == 10
    assert resumed.validation_loss == straight.validation_loss
    assert_equal(straight.checkpoint, resumed.checkpoint)


def test_dropout_is_really_on(tiny):
    with_it = train(tiny(**{"model.dropout": 0.1, "run.name": "a", "trainer.max_steps": 2}))
    without = train(tiny(**{"run.name": "b", "trainer.max_steps": 2}))
    assert not torch.equal(*(weights_of(Path(r.checkpoint))["token.weight"] for r in (with_it, without)))


@pytest.mark.parametrize("micro_batch", [2, 8])
def test_resume_with_another_accumulation_continues_the_same_run(crashed, tiny, micro_batch):
    straight = train(tiny(**{"run.name": "straight"}))
    resumed = train(crashed()(**{"run.resume": "last", "data.micro_batch": micro_batch}))
    assert resumed.steps == 10
    assert_same_training(weights_of(Path(resumed.checkpoint)), weights_of(Path(straight.checkpoint)))


def test_curves_have_no_points_of_the_lost_steps_twice(crashed):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = train(crashed(**{"trainer.checkpoint_every": 6})(**{"run.resume": "last"}))  # the point at 8 was lost
    events = EventAccumulator(result.tensorboard, size_guidance={"scalars": 0}).Reload()
    assert [e.step for e in events.Scalars("train/loss")] == [2, 4, 6, 8, 10]


def points(folder, tag):
    """Steps of a curve, as often as they are written and not taken back."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return [event.step for event in events.Scalars(tag)]


NORMS = ("features/logits", "spectral/norms/output/head/w")


def test_the_norms_at_the_resumed_step_are_written_once(tiny, monkeypatch):
    """They are measured in the step after the checkpoint, which the crashed run has done."""
    every = {"trainer.feature_norms_every": 4, "trainer.spectral_norms_every": 4}
    config = tiny(**every)
    with monkeypatch.context() as patch:
        crash_at(patch, 10)
        with pytest.raises(CrashError):
            train(config)
    folder = RunFolder(config).tensorboard
    assert points(folder, NORMS[0]) == [0, 4, 8]
    train(tiny(**every, **{"run.resume": "last"}))
    for tag in NORMS:
        assert points(folder, tag) == [0, 4, 8], tag


def test_norms_that_a_stopped_run_had_yet_to_write_are_not_lost(tiny):
    """It ended with the checkpoint: nobody has done the step that they are measured in."""
    every = {"trainer.feature_norms_every": 2, "trainer.spectral_norms_every": 2}
    first = train(tiny(**every, **{"trainer.max_steps": 4, "schedule.warmup_steps": 1}))
    assert points(first.tensorboard, NORMS[0]) == [0, 2]
    second = train(tiny(**every, **{"run.resume": "last", "schedule.warmup_steps": 1}))
    for tag in NORMS:
        assert points(second.tensorboard, tag) == [0, 2, 4, 6, 8], tag


def test_a_checkpoint_can_be_the_start_of_another_run(crashed, tiny):
    config = crashed()
    first = Path(config().run.root) / "tiny" / "checkpoints" / "step_00000004"
    fork = train(config(**{"run.resume": str(first), "run.name": "fork"}))
    straight = train(tiny(**{"run.name": "straight"}))
    assert_equal(straight.checkpoint, fork.checkpoint)
    with pytest.raises(UserError, match="already holds a run"):
        train(config(**{"run.resume": str(first), "run.name": "fork"}))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"recipe.lr": 0.001}, r"recipe\.lr: 0\.0078125 in the checkpoint, 0\.001 now"),
        ({"recipe.branch_depth": 1}, r"recipe\.branch_depth: 2 in the checkpoint, 1 now"),
        ({"recipe.base_width": 32}, r"recipe\.base_width: 16 in the checkpoint, 32 now"),
        ({"model.qk_norm": True, "seed": 3}, r"model\.qk_norm: False(.|\n)*seed: 0 in the checkpoint, 3 now"),
        ({"data.batch_size": 16}, r"data\.batch_size: 8 in the checkpoint, 16 now"),
        ({"data.path": "OTHER"}, r"corpus: \w+ in the checkpoint, \w+ now"),
        ({"trainer.max_steps": 8}, r"has all 8 steps of the run already"),
    ],
)
def test_another_run_is_not_continued(crashed, tmp_path, change, named):
    if change.get("data.path"):
        change = {"data.path": str(write_corpus(tmp_path / "other", seed=1))}
    config = crashed()
    with pytest.raises(UserError, match=named):
        train(config(**{"run.resume": "last", **change}))


def test_a_longer_run_is_continued_and_says_what_happens_to_the_schedule(crashed, capsys):
    result = train(crashed()(**{"run.resume": "last", "trainer.max_steps": 14}))
    assert result.steps == 14
    assert "planned for 10 steps and now has 14" in capsys.readouterr().out


def test_without_a_checkpoint_there_is_nothing_to_resume(tiny):
    with pytest.raises(UserError, match=r"no complete checkpoint in .*start the run without resuming"):
        train(tiny(**{"run.resume": "last"}))
    with pytest.raises(UserError, match="no complete checkpoint"):
        train(tiny(**{"run.resume": "nowhere"}))


def damage_cut(path):
    file = path / "rank_00000.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def damage_flip(path):
    file = path / "rank_00000.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def damage_missing(path):
    (path / "rank_00000.safetensors").unlink()


def damage_marker(path):
    (path / "checkpoint.json").write_text('{"step": 8')


def damage_encoding(path):
    (path / "checkpoint.json").write_bytes(b"\xff")


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (damage_cut, r"rank_00000\.safetensors has [\d,]+ bytes instead of [\d,]+: it was cut short"),
        (damage_flip, r"rank_00000\.safetensors has other content"),
        (damage_missing, r"rank_00000\.safetensors is missing"),
        (damage_marker, r"checkpoint\.json cannot be read"),
        (damage_encoding, r"checkpoint\.json cannot be read"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_offered(crashed, damage, named):
    config = crashed()
    folder = Path(config().run.root) / "tiny" / "checkpoints"
    damage(folder / "step_00000008")
    with pytest.raises(UserError, match=rf"step_00000008.*{named}.*resume from .*step_00000004"):
        train(config(**{"run.resume": "last"}))
    assert train(config(**{"run.resume": str(folder / "step_00000004")})).steps == 10


def test_an_unfinished_checkpoint_does_not_exist(crashed):
    config = crashed()
    folder = Path(config().run.root) / "tiny" / "checkpoints"
    shutil.copytree(folder / "step_00000008", folder / ".unfinished_step_00000009")
    (folder / "step_00000008" / "checkpoint.json").unlink()
    assert checkpoints.newest(folder).step == 4


@pytest.mark.parametrize("writer", ["mup_lightning.training.saving.write", "mup_lightning.training.saving.torch.save"])
def test_a_full_disk_while_saving_leaves_the_checkpoint_before_it(tiny, monkeypatch, writer):
    config = tiny()
    original = write if writer.endswith("write") else torch.save
    calls = []

    def second_time_full(first, second):
        calls.append(first)
        if len(calls) == 2:
            path = next(value for value in (first, second) if isinstance(value, Path))
            path.write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(first, second)

    monkeypatch.setattr(writer, second_time_full)
    with pytest.raises(UserError, match=r"step 8 could not be written.*No space left.*step_00000004, is untouched"):
        train(config)
    folder = Path(config.run.root) / "tiny" / "checkpoints"
    assert [path.name for path in folder.iterdir()] == ["step_00000004"]
    monkeypatch.undo()
    assert train(tiny(**{"run.resume": "last"})).steps == 10


def test_a_write_that_really_fails_is_named_too(tiny, monkeypatch):
    """The kernel refuses to write past a file-size limit in the middle of our own writing."""
    config = tiny()

    def limited(path, tensors):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
        try:
            return write(path, tensors)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    monkeypatch.setattr("mup_lightning.training.saving.write", limited)
    with pytest.raises(UserError, match=r"step 4 could not be written.*none was saved before it"):
        train(config)
    assert list((Path(config.run.root) / "tiny" / "checkpoints").iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named_too(tiny, monkeypatch):
    """Nor is there a disk usage of it."""
    config = tiny()
    checkpoints_folder = Path(config.run.root) / "tiny" / "checkpoints"
    original = Path.mkdir

    def mkdir(self, *arguments, **options):
        if checkpoints_folder in self.parents:
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return original(self, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with pytest.raises(UserError, match=r"step 4 could not be written.*Permission denied.*MB free.*none was saved"):
        train(config)
    assert not checkpoints_folder.exists()


def test_the_checkpoint_holds_the_recipe_and_the_base_shape(tiny):
    result = train(tiny(**{"trainer.max_steps": 2}))
    marker = json.loads((Path(result.checkpoint) / "checkpoint.json").read_text())
    assert marker["config"]["recipe"]["base_width"] == 16
    assert marker["identity"]["recipe"]["lr"] == 0.0078125
    assert marker["step"] == 2
