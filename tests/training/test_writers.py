"""One writer a run folder, whoever dies in between; and what a user puts beside checkpoints is the user's.

That is never deleted, renamed, counted, or taken for the run's own.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mup_lightning import files
from mup_lightning.callbacks.step import StepCallback
from mup_lightning.errors import Busy, UserError
from mup_lightning.files import OneWriter
from mup_lightning.training import checkpoint as checkpoints
from mup_lightning.training.evaluate import evaluate
from mup_lightning.training.run import RunFolder
from mup_lightning.training.train import train
from tests.training.reference import tree

HOLD = """
import sys, socket
from pathlib import Path
from mup_lightning import files
socket.gethostname = lambda: sys.argv[2]
files.SILENCE, files.BEAT = 3.0, 0.1
with files.OneWriter(Path(sys.argv[1]), "it"):
    print(flush=True)
    sys.stdin.read()
"""


class Hook(StepCallback):
    """Does something after a step, before the run saves."""

    def __init__(self, step, do):
        self.step, self.do = step, do

    def on_step_end(self, trainer, module, step):
        if step == self.step:
            self.do()


@pytest.fixture
def hold(monkeypatch):
    """Starts a process that holds a lock: hold(file, host); it has a short heartbeat, and so has this process."""
    monkeypatch.setattr(files, "SILENCE", 3.0)
    monkeypatch.setattr(files, "BEAT", 0.1)
    started = []

    def start(file, host="here"):
        file.parent.mkdir(parents=True, exist_ok=True)
        monkeypatch.setattr("socket.gethostname", lambda: "here")
        command = [sys.executable, "-c", HOLD, str(file), host]
        started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        started[-1].stdout.readline()
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("host", ["here", "elsewhere"])
def test_a_second_writer_is_refused_until_the_first_has_ended_or_died(tmp_path, hold, host, capsys):
    file = tmp_path / "writer.lock"
    first = hold(file, host)
    with (
        pytest.raises(Busy, match=rf"^it is being written by process {first.pid} on {host}; wait"),
        OneWriter(file, "it"),
    ):
        pass
    first.kill()
    first.wait()
    begin = time.monotonic()
    with OneWriter(file, "it"):
        assert (time.monotonic() - begin > 2) == (host == "elsewhere")  # from afar only its silence tells
    assert not file.exists()
    waiting = f"waiting, at most 3 s, to see whether process {first.pid} on elsewhere still lives"
    assert (waiting in capsys.readouterr().err) == (host == "elsewhere")


@pytest.mark.parametrize("content", [b"", b"filelock/2\npid=", b"\xff"])
def test_a_lock_that_a_power_cut_has_left_half_written_is_replaced(tmp_path, hold, content):
    (tmp_path / "writer.lock").write_bytes(content)
    with OneWriter(tmp_path / "writer.lock", "it"):
        pass


def test_a_second_training_touches_nothing(tiny, hold):
    config = tiny(**{"trainer.max_steps": 4, "run.resume": "auto"})
    train(config)
    folder = RunFolder(config)
    first = hold(folder.path / "writer.lock")
    before = tree(folder.path)
    for resume in ("last", "auto", str(folder.checkpoints / "step_00000004")):
        with pytest.raises(Busy, match=rf"the run {folder.path} is being written by process {first.pid} on here"):
            train(tiny(**{"run.resume": resume, "trainer.max_steps": 8}))
    assert tree(folder.path) == before
    first.kill()
    first.wait()
    assert train(tiny(**{"run.resume": "last", "trainer.max_steps": 8})).steps == 8
    assert not (folder.path / "writer.lock").exists()


def test_a_run_that_was_suspended_and_replaced_ends_before_it_writes_again(tiny, hold):
    config = tiny(**{"trainer.max_steps": 8})
    folder = RunFolder(config)

    def lose():
        folder.path.joinpath("writer.lock").unlink()
        hold(folder.path / "writer.lock")

    with pytest.raises(Busy, match="is being written by process"):
        train(config, callbacks=[Hook(6, lose)])
    assert [path.name for path in folder.checkpoints.iterdir()] == ["step_00000004"]
    assert not folder.result_file.exists()


def test_a_lock_that_somebody_has_deleted_is_taken_again(tiny):
    config = tiny(**{"trainer.max_steps": 8})
    lock = RunFolder(config).path / "writer.lock"
    assert train(config, callbacks=[Hook(3, lock.unlink), Hook(5, lambda: os.stat(lock))]).steps == 8


NAMES = """
    step_best step_final step_4 step_000000004 step_99999999 step_00000004.bak .unfinished_notes .unfinished_step_best
    .discarded_step_1 aside_mine zzz step_00000004(copy)
""".split()
"""Names of copies of step 4. The form of step_99999999 is the program's own, but its content is not of that step."""


def test_copies_made_while_it_trains_stay_and_count_for_nothing(tiny):
    changes = {"trainer.checkpoint_every": 2, "trainer.keep_checkpoints": 2, "schedule.warmup_steps": 1}
    folder = RunFolder(tiny()).checkpoints
    own = folder / "step_00000004"
    links = {"step_00000098": own, "step_00000099": folder / "nowhere", "step_last": own}

    def copy():
        for name in NAMES:
            shutil.copytree(own, folder / name)
        for name, target in links.items():
            (folder / name).symlink_to(target, target_is_directory=True)
        (folder / "step_00000097").write_text("notes")
        shutil.copy(own / "rank_00000.safetensors", folder / "step_best" / "rank_00000 (copy).safetensors")

    result = train(tiny(**changes), callbacks=[Hook(5, copy)])
    kept = ["step_00000008", "step_00000010"]
    everything = {*kept, *NAMES, *links, "step_00000097"}
    assert Path(result.checkpoint).name == kept[-1]
    assert {path.name for path in folder.iterdir()} == everything
    assert [path.name for path in checkpoints.complete(folder)] == kept
    before = {name: tree(folder / name) for name in NAMES}

    again = train(tiny(**changes, **{"run.resume": "last", "trainer.max_steps": 12}))
    assert again.first_step == 10
    back = train(tiny(**changes, **{"run.resume": str(folder / "step_00000010"), "trainer.max_steps": 14}))
    assert back.first_step == 10
    everything = everything - set(kept) | {"step_00000012", "step_00000014", "aside_step_00000012"}
    assert {path.name for path in folder.iterdir()} == everything
    assert before == {name: tree(folder / name) for name in NAMES}
    assert evaluate(folder.parent)["step"] == 14
    assert evaluate(folder / "step_best")["validation_loss"] != evaluate(folder.parent)["validation_loss"]

    for name in ("step_best", "step_99999999"):
        with pytest.raises(UserError, match=rf"{name} is a copy or a link.*--run.name NAME.*name step_00000004"):
            train(tiny(**changes, **{"run.resume": str(folder / name)}))
    fork = tiny(**changes, **{"run.resume": str(folder / "step_best"), "run.name": "fork"})
    assert train(fork).first_step == 4


@pytest.mark.parametrize("kind", ["file", "link", "copy"])
def test_what_has_the_name_of_the_next_checkpoint_is_in_the_way_and_stays(tiny, kind):
    folder = RunFolder(tiny()).checkpoints
    taken = folder / "step_00000008"

    def take():
        if kind == "copy":
            shutil.copytree(folder / "step_00000004", taken)
        else:
            taken.symlink_to(folder / "step_00000004") if kind == "link" else taken.write_text("notes")

    with pytest.raises(UserError, match=rf"{taken} is not .*move it away"):
        train(tiny(), callbacks=[Hook(6, take)])
    assert os.path.lexists(taken)
    assert [path.name for path in checkpoints.complete(folder)] == ["step_00000004"]
    taken.rename(folder / "mine")
    assert train(tiny(**{"run.resume": "last"})).first_step == 4
