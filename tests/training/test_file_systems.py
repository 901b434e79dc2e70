"""File systems that lack something, or fail: what threatens no data is said once, and what does ends the run."""

import errno
import fcntl
import os
import stat
from pathlib import Path

import pytest

from mup_lightning import files
from mup_lightning.errors import UserError
from mup_lightning.studies.sweep.grid import expand
from mup_lightning.studies.sweep.run import run_trials
from mup_lightning.studies.sweep.spec import load
from mup_lightning.training import checkpoint as checkpoints
from mup_lightning.training.run import RunFolder
from mup_lightning.training.train import train
from tests.conftest import write_corpus
from tests.studies.sweeps import tiny_sweep, write
from tests.training.test_writers import Hook


@pytest.fixture
def fsync(monkeypatch):
    """Makes fsync fail: fsync(error, of_files)."""
    own = os.fsync
    monkeypatch.setattr(files, "_said", set())

    def fail(error, of_files=True):
        def failing(descriptor):
            if of_files or stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise OSError(error, os.strerror(error))
            own(descriptor)

        monkeypatch.setattr(os, "fsync", failing)

    return fail


@pytest.mark.parametrize("of_files", [False, True])
def test_a_file_system_without_fsync_is_said_once(tiny, fsync, capsys, of_files):
    fsync(errno.EINVAL, of_files)
    assert train(tiny()).finished
    assert RunFolder(tiny()).finished_result()
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert len(warnings) == 1
    assert "does not force data to the disk (Invalid argument)" in warnings[0]


@pytest.mark.parametrize("of_files", [False, True])
def test_an_fsync_that_fails_ends_the_run(tiny, fsync, of_files):
    with pytest.raises(UserError, match=r"step 8 could not be .*Input/output error.*step_00000004, is untouched"):
        train(tiny(), callbacks=[Hook(7, lambda: fsync(errno.EIO, of_files))])


def test_leftovers_that_cannot_be_deleted_fail_no_checkpoint(tiny, monkeypatch, capsys):
    """As on NFS, where a file that somebody has open gets a name .nfs* and stays."""
    changes = {"trainer.checkpoint_every": 2, "trainer.keep_checkpoints": 1, "schedule.warmup_steps": 1}
    folder, unlink = RunFolder(tiny()).checkpoints, os.unlink

    def in_use(path, **options):
        if Path(path).name.startswith(".nfs"):
            raise OSError(errno.EBUSY, "Device or resource busy", path)
        unlink(path, **options)

    def read():
        """Somebody reads the newest checkpoint, and a killed run has left something, too."""
        for name in ("step_00000004", ".unfinished_step_00000006"):
            (folder / name).mkdir(exist_ok=True)
            (folder / name / ".nfs0001").touch()

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", in_use)
        result = train(tiny(**changes), callbacks=[Hook(5, read)])
    assert result.finished
    assert "cannot be deleted yet; nothing" in capsys.readouterr().err
    names = sorted(path.name.rpartition("_")[0] for path in folder.iterdir())
    assert names == [".discarded_step_00000004", ".discarded_unfinished_step_00000006", "step"]
    checkpoints.verify(checkpoints.newest(folder))
    train(tiny(**changes, **{"run.resume": "last", "trainer.max_steps": 12}))
    assert [path.name for path in folder.iterdir()] == ["step_00000012"]


def test_nothing_needs_the_locks_of_a_file_system(tiny, tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    corpus = write_corpus(tmp_path / "own")
    assert train(tiny(**{"data.path": str(corpus)})).finished
    trials = expand(load(write(tmp_path, tiny_sweep(corpus, vary={}))))
    assert run_trials(trials, tmp_path / "out", 0).finished == 1
