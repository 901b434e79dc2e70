"""Resume: bit-identical after a crash, refused where it could not be, an older checkpoint offered for a damaged one."""

import errno
import resource
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mup_lightning.errors import UserError
from mup_lightning.training import checkpoint as checkpoints
from mup_lightning.training import saving
from mup_lightning.training.run import RunFolder
from mup_lightning.training.tensors import Shards
from mup_lightning.training.train import train
from tests.conftest import tiny_config, write_corpus
from tests.training.reference import assert_same_training, tree, weights_of
from tests.training.test_writers import Hook


class CrashError(RuntimeError):
    """Stands for a power cut."""


def crash(config, step):
    """Make a run die after a step, when its curves are logged, and before it saves."""

    def die():
        raise CrashError

    with pytest.raises(CrashError):
        train(config, callbacks=[Hook(step, die)])
    return RunFolder(config)


def points(folder, tag):
    """Steps of a curve, as often as they are written and not purged."""
    return [event.step for event in EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload().Scalars(tag)]


def assert_equal(first, second):
    """Weights and optimizer states are equal to the bit."""
    a, b = Shards(Path(first)), Shards(Path(second))
    assert a.quantities == b.quantities
    for name, quantities in a.quantities.items():
        assert {"weight"} < set(quantities)
        assert all(torch.equal(a.read(quantity, name), b.read(quantity, name)) for quantity in quantities), name


@pytest.fixture(scope="module")
def runs(corpus, tmp_path_factory):
    """Results of a whole run; and the folder of one that died after step 9. Both stay as they are."""
    make = partial(tiny_config, corpus, tmp_path_factory.mktemp("runs"))
    return train(make(**{"run.name": "straight"})), crash(make(), 9).path


@pytest.fixture
def straight(runs):
    return runs[0]


@pytest.fixture
def crashed(runs, tiny):
    """The checkpoints, after steps 4 and 8, of a copy of the run that died."""
    shutil.copytree(runs[1], RunFolder(tiny()).path)
    return RunFolder(tiny()).checkpoints


@pytest.mark.parametrize("optimizer", ["muon_kimi", "adamw"])
def test_resume_is_bit_identical_with_dropout(tiny, optimizer):
    changes = {"recipe.optimizer": optimizer, "model.dropout": 0.1}
    straight = train(tiny(**changes, **{"run.name": "straight"}))
    crash(tiny(**changes), 9)
    resumed = train(tiny(**changes, **{"run.resume": "last"}))
    assert (resumed.first_step, resumed.steps) == (8, 10)
    assert resumed.validation_loss == straight.validation_loss
    assert_equal(straight.checkpoint, resumed.checkpoint)


def test_a_run_that_was_killed_before_it_wrote_its_result_ends_with_it(tiny, straight):
    folder = RunFolder(tiny())
    shutil.copytree(Path(straight.checkpoint).parents[1], folder.path)
    folder.result_file.unlink()
    again = train(tiny(**{"run.resume": "last", "trainer.keep_checkpoints": 1}))
    assert (again.finished, again.validation_loss) == (True, straight.validation_loss)
    assert checkpoints.complete(folder.checkpoints) == [folder.checkpoints / "step_00000010"]
    with pytest.raises(UserError, match="already has all 10 steps"):
        train(tiny(**{"run.resume": "last"}))


def test_a_checkpoint_continues_with_another_accumulation_and_as_another_run(tiny, straight, crashed):
    fork = tiny(**{"run.resume": str(crashed / "step_00000004"), "run.name": "fork"})
    assert_equal(straight.checkpoint, train(fork).checkpoint)
    before = tree(RunFolder(fork).path)
    held = r"fork already holds a run with a checkpoint at step_00000010.*--run.resume last.*--run.name NAME"
    for again in (fork, tiny(**{"run.name": "fork"})):
        with pytest.raises(UserError, match=held):
            train(again)
    assert tree(RunFolder(fork).path) == before
    resumed = train(tiny(**{"run.resume": "last", "data.micro_batch": 2}))
    assert_same_training(weights_of(resumed.checkpoint), weights_of(straight.checkpoint))


def test_points_of_a_stopped_run_are_not_lost(tiny):
    """Norms are measured in the step after the checkpoint, which the stopped run has not done.

    Those of lost steps are written once: `tests.training.test_loggers`.
    """
    changes = {"trainer.feature_norms_every": 4, "trainer.spectral_norms_every": 4, "schedule.warmup_steps": 1}
    folder = train(tiny(**changes, **{"trainer.max_steps": 4})).tensorboard
    assert points(folder, "features/logits") == [0]
    train(tiny(**changes, **{"run.resume": "last"}))
    for tag in ("features/logits", "spectral/norms/output/head/w"):
        assert points(folder, tag) == [0, 4, 8]


def test_another_run_is_not_continued_but_a_longer_one_is(tiny, crashed, tmp_path, capsys):
    for change, named in (
        ({"recipe.lr": 0.001}, r"recipe\.lr: 0\.0078125 in the checkpoint, 0\.001 now"),
        ({"recipe.base_width": 32}, r"recipe\.base_width: 16 in the checkpoint, 32 now"),
        (
            {"model.qk_norm": True, "seed": 3},
            r"model\.qk_norm: false in the checkpoint, true now(.|\n)*seed: 0 in the checkpoint, 3 now",
        ),
        ({"data.batch_size": 16}, r"data\.batch_size: 8 in the checkpoint, 16 now"),
        ({"model.context": 8}, r"model\.context: 16 in the checkpoint, 8 now"),
        ({"data.path": str(write_corpus(tmp_path / "other", seed=1))}, r"corpus: \w+ in the checkpoint, \w+ now"),
        (
            {"schedule.warmup_steps": 3},
            r"step 1 was made at 0\.5 .* at 0\.25; .*\n  \S+warmup_steps: null in .*, 3 now\n",
        ),
        (
            {"schedule.kind": "wsd"},
            r"step 3 was made at 0\.9\d+ .* at 1\.0; .*\n  schedule\.kind: cosine in .*, wsd now",
        ),
        ({"trainer.max_steps": 8}, r"already has all 8 steps of the run; raise --trainer\.max_steps"),
        ({"run.resume": "nowhere"}, "nowhere does not exist; expected a folder such as"),
        ({"run.name": "empty"}, r"no complete checkpoint in .*start the run without resuming"),
    ):
        with pytest.raises(UserError, match=named):
            train(tiny(**{"run.resume": "last", **change}))
    assert train(tiny(**{"run.resume": "last", "trainer.max_steps": 14})).steps == 14
    assert "planned for 10 steps and now has 14" in capsys.readouterr().out


WSD = {"schedule.kind": "wsd", "schedule.warmup_steps": 3, "schedule.decay": 0.3, "schedule.floor": 0}
KEPT = {"trainer.checkpoint_every": 2, "trainer.keep_checkpoints": 9}


def test_a_schedule_may_differ_if_no_step_done_would(tiny, capsys):
    """10 steps: 3 of warm-up, 4 at the peak, 3 of decay. Resumed in each, and branched from a longer trunk."""
    straight = train(tiny(**WSD, **KEPT, **{"run.name": "straight"}))
    peak = {"schedule.kind": "constant", "trainer.max_steps": 20, "schedule.warmup_tokens": 8 * 16 * 3}
    folder = crash(tiny(**KEPT, **peak, **{"run.name": "trunk"}), 9)
    sources = [(Path(straight.checkpoint).parents[1], step) for step in (2, 6, 8)]
    for run, step in [*sources, (folder.path, 2), (folder.path, 6)]:
        name = {"run.name": f"{run.name}-{step}", "run.resume": str(run / "checkpoints" / f"step_{step:08d}")}
        resumed = train(tiny(**WSD, **name))
        assert (resumed.first_step, resumed.validation_loss) == (step, straight.validation_loss)
        assert_equal(straight.checkpoint, resumed.checkpoint)
    trunk = {"run.name": "trunk", "run.resume": "last"}
    late = WSD | {"run.name": "late", "run.resume": str(folder.checkpoints / "step_00000008")}
    for values, named in (
        (late, r"step 8 was made at 1\.0 .* at 0\.6\d+; (.|\n)* trainer\.max_steps: 20 in the checkpoint, 10 now"),
        (peak | trunk | {"schedule.warmup_tokens": None}, r"step 1 was made at 0\.25 .* at 0\.3\d+; "),
    ):
        with pytest.raises(UserError, match=named):
            train(tiny(**values))
    capsys.readouterr()
    assert train(tiny(**KEPT | peak | trunk | {"trainer.max_steps": 12})).steps == 12
    assert "planned for 20 steps and now has 12; the schedule's factor " in capsys.readouterr().out


def test_a_damaged_checkpoint_is_named_and_the_one_before_offered(tiny, crashed, tmp_path):
    tensors, marker = (crashed / "step_00000008" / name for name in ("rank_00000.safetensors", "checkpoint.json"))
    shutil.copytree(crashed / "step_00000008", tmp_path / "sound")
    content = tensors.read_bytes()
    middle = len(content) // 2
    for file, damaged, named in (
        (tensors, content[:-100], r"rank_00000\.safetensors is missing or was cut short: expected [\d,]+ bytes"),
        (tensors, content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :], "has other content"),
        (tensors, None, r"rank_00000\.safetensors is missing or was cut short"),
        (marker, b'{"step": 8', r"checkpoint\.json is damaged"),
        (marker, b"\xff", r"checkpoint\.json is not UTF-8"),
        (marker, marker.read_bytes().replace(b'"step": 8', b'"step": 9'), r"checkpoint\.json is damaged.*sha256"),
    ):
        file.unlink() if damaged is None else file.write_bytes(damaged)
        with pytest.raises(UserError, match=rf"step_00000008.*{named}.*take the one before it, .*step_00000004"):
            train(tiny(**{"run.resume": "last"}))
        shutil.copytree(tmp_path / "sound", crashed / "step_00000008", dirs_exist_ok=True)
    shutil.copytree(crashed / "step_00000008", crashed / ".unfinished_step_00000009")
    marker.unlink()
    newest = checkpoints.newest(crashed)
    assert newest.step == 4
    shutil.rmtree(newest.path)
    with pytest.raises(UserError, match=r"step_00000004 is gone: its run goes on, and has deleted it; repeat"):
        checkpoints.verify(newest)


@pytest.mark.parametrize("writer", ["write", "torch.save", "kernel", "mkdir"])
def test_a_disk_that_fails_while_saving_leaves_the_checkpoint_before_it(tiny, monkeypatch, writer):
    """Simulated failures of every write; and a real one, by a limit on the size of files."""
    owner, name = {"mkdir": (Path, "mkdir"), "torch.save": (saving.torch, "save")}.get(writer, (saving, "write"))
    original = getattr(owner, name)

    def full_at_step_8(*arguments, **options):
        path = next((value for value in arguments if isinstance(value, Path)), Path())
        if "step_00000008" not in str(path):
            return original(*arguments, **options)
        if writer != "kernel":
            if writer != "mkdir":
                path.write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
        try:
            return original(*arguments, **options)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    monkeypatch.setattr(owner, name, full_at_step_8)
    cause = "File too large" if writer == "kernel" else "No space left"
    with pytest.raises(UserError, match=rf"step 8 could not be written.*{cause}.*MB free.*step_00000004, is untouched"):
        train(tiny())
    assert [path.name for path in RunFolder(tiny()).checkpoints.iterdir()] == ["step_00000004"]
    monkeypatch.undo()
    assert train(tiny(**{"run.resume": "last"})).steps == 10


@pytest.mark.parametrize(("step", "first_step"), [(3, 0), (7, 4)])
def test_auto_starts_continues_and_ends_with_the_same_command(tiny, straight, step, first_step):
    changes = {"run.resume": "auto", "trainer.log_every": 1}
    crash(tiny(**changes), step)
    result = train(tiny(**changes))
    assert (result.first_step, result.steps) == (first_step, 10)
    assert result.validation_loss == straight.validation_loss
    assert points(result.tensorboard, "train/loss") == list(range(1, 11))

    assert train(tiny(**changes)) == result  # which is not trained again
    file = Path(result.checkpoint).parents[1] / "result.json"
    for damaged in (b"{", b"[]", b"\xff"):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=r"result\.json.*remove it, and repeat this command"):
            train(tiny(**changes))
    file.unlink()  # as if it had been killed between its last checkpoint and its result
    again = train(tiny(**changes))
    assert (again.finished, again.steps, again.checkpoint) == (True, 10, result.checkpoint)
    assert again.validation_loss == straight.validation_loss


def test_checkpoints_after_the_one_that_a_run_goes_back_to_are_set_aside(tiny, capsys):
    """They belong to a history that is gone: none is the newest one, nor does any push out a new one."""
    changes = {"trainer.checkpoint_every": 2, "trainer.keep_checkpoints": 5, "schedule.warmup_steps": 1}
    folder = Path(train(tiny(**changes)).checkpoint).parent
    old = (folder / "step_00000010" / checkpoints.MARKER_FILE).read_bytes()
    changes |= {"run.resume": str(folder / "step_00000004"), "trainer.keep_checkpoints": 2, "trainer.max_steps": 8}
    again = train(tiny(**changes))
    assert "made anew from step 4 on; its later checkpoints are kept as " in capsys.readouterr().out
    assert Path(again.checkpoint) == checkpoints.newest(folder).path == folder / "step_00000008"
    assert [path.name for path in checkpoints.complete(folder)] == ["step_00000006", "step_00000008"]
    aside = sorted(path.name for path in folder.glob("aside_*"))
    assert aside == ["aside_step_00000006", "aside_step_00000008", "aside_step_00000010"]
    assert (folder / aside[-1] / checkpoints.MARKER_FILE).read_bytes() == old
    checkpoints.verify(checkpoints.read(folder / aside[-1]))
    train(tiny(**changes | {"run.resume": str(folder / "step_00000006")}))
    assert (folder / "aside_step_00000008_2").exists()

    longer = changes | {"run.resume": str(folder / aside[-1]), "trainer.max_steps": 12}
    with pytest.raises(UserError, match=r"aside_step_00000010 was set aside .*as another one \(--run\.name NAME\)"):
        train(tiny(**longer))
    assert train(tiny(**longer, **{"run.name": "fork"})).first_step == 10
