"""One writer a run folder, and only the program's own folders in it: whatever lies beside them, and dies in between."""

import os
import subprocess
import sys
import time

import pytest

from mup_lightning import files
from mup_lightning.callbacks.step import StepCallback
from mup_lightning.errors import Busy
from mup_lightning.files import OneWriter
from mup_lightning.training.run import RunFolder
from mup_lightning.training.train import train

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


def tree(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


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
