"""A sweep whose workers are told to stop before they have begun: SLURM signals all processes of a task in any order."""

import os
import signal
import subprocess
import sys

import pytest

from mup_lightning.cli.sweep import compose
from mup_lightning.errors import UserError
from mup_lightning.studies.sweep import pool
from mup_lightning.studies.sweep.grid import expand
from mup_lightning.studies.sweep.run import SweepRun
from mup_lightning.studies.sweep.spec import load
from tests.studies.sweeps import tiny_sweep, write


@pytest.fixture
def sweep(corpus, tmp_path):
    content = tiny_sweep(corpus, vary={})
    content["sweep"]["set"]["trainer.max_steps"] = 2
    return SweepRun(expand(load(write(tmp_path, content)), compose), tmp_path / "out", workers=1)


def strike(monkeypatch, number, *, sweep_too=False):
    """The first worker dies of a signal as soon as it is born, and the sweep may get it too, after that."""
    init, born = pool.Worker.__init__, []

    def start_and_kill(worker, *arguments):
        init(worker, *arguments)
        born.append(worker)
        if len(born) == 1:
            os.kill(worker._process.pid, number)
            worker._process.join()

    death = pool.Worker.death

    def signalled(worker):
        if sweep_too:
            os.kill(os.getpid(), number)
        return death(worker)

    monkeypatch.setattr(pool.Worker, "__init__", start_and_kill)
    monkeypatch.setattr(pool.Worker, "death", signalled)
    return born


def test_a_worker_alone_is_replaced(sweep, monkeypatch):
    born = strike(monkeypatch, signal.SIGTERM)
    summary = sweep.run()
    assert (summary.ran, summary.failed, summary.interrupted) == (1, {}, False)
    assert len(born) == 2


def test_with_the_sweep_it_is_an_interruption(sweep, monkeypatch):
    born = strike(monkeypatch, signal.SIGTERM, sweep_too=True)
    summary = sweep.run()
    assert (summary.ran, summary.failed, summary.interrupted) == (0, {}, True)
    assert len(born) == 1


def test_a_worker_that_cannot_start_is_still_an_error(sweep, monkeypatch):
    strike(monkeypatch, signal.SIGKILL)
    with pytest.raises(UserError, match=r"signal 9.*before its first run"):
        sweep.run()


def test_a_killed_worker_leaves_no_semaphore_behind():
    """Of which Python would warn the user at the end of an interrupted sweep."""
    code = (
        "import multiprocessing, os, signal, sys; multiprocessing.set_start_method('spawn')  # as a worker's own is\n"
        "from mup_lightning.studies.workers import start_up; start_up(1)\n"
        "from tqdm import tqdm; tqdm.write('a loss spike', file=sys.stderr); os.kill(os.getpid(), signal.SIGKILL)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode, ended.stderr) == (-signal.SIGKILL, "a loss spike\n")
