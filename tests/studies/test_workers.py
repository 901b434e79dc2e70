"""Worker processes: results as they come, a death that costs one item, and no process that outlives its parent."""

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from mup_lightning.errors import UserError
from mup_lightning.studies import workers

GIB = 1 << 30


def double_or_die(item, log=None):
    if item < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGTERM)  # as SLURM may, before the parent's: the parent alone acts on it
    return 2 * item


def test_a_death_costs_one_item(tmp_path):
    died = dict(workers.each(double_or_die, [1, -1, 2, 3], 2, log=tmp_path / "log", died=lambda item: "died"))
    assert died == {0: 2, 1: "died", 2: 4, 3: 6}
    with pytest.raises(UserError, match=r"a worker process died: out of memory, or killed; try fewer workers"):
        list(workers.each(double_or_die, [-1, 1], 1))
    assert list(workers.each(partial(pow, 2), [3], 0)) == [(0, 8)]


PARENT = """
import sys, time
from mup_lightning.studies.workers import each

def sleep(item):
    print("busy", flush=True)
    time.sleep(100)

if __name__ == "__main__":
    list(each(sleep, [1], 1))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_busy_worker_does_not_outlive_its_parent(tmp_path, number):
    (tmp_path / "parent.py").write_text(PARENT)
    command = [sys.executable, str(tmp_path / "parent.py")]
    heed = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731, where tests run in the background
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, preexec_fn=heed)
    assert parent.stdout.readline() == "busy\n"
    parent.send_signal(number)
    parent.communicate(timeout=60)  # returns when the worker, too, has closed the pipe


@pytest.mark.parametrize(("given", "threads"), [(None, 32), ("", 32), ("3", 3), ("4,2", 4), ("0", 1), ("x", 32)])
def test_threads_are_a_share_of_the_cores_unless_openmp_says_otherwise(monkeypatch, given, threads):
    monkeypatch.setattr(workers, "cores", lambda: 64)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert workers.threads(2) == threads


@pytest.mark.parametrize(
    ("files", "environment", "cores", "memory"),
    [
        ({}, {}, 64, 256),
        ({"cpu.max": "max 100000", "memory.max": "max"}, {}, 64, 256),
        ({"cpu.max": "350000 100000", "memory.max": str(8 * GIB)}, {}, 3, 8),
        ({"cpu.max": "50000 100000"}, {"SLURM_MEM_PER_NODE": "4096"}, 1, 4),
        ({}, {"SLURM_MEM_PER_NODE": "0", "SLURM_MEM_PER_CPU": "1024"}, 64, 64),
    ],
)
def test_cores_and_memory_are_what_the_machine_the_container_and_slurm_grant(
    tmp_path, monkeypatch, files, environment, cores, memory
):
    for name, text in files.items():
        (tmp_path / name).write_text(f"{text}\n")
    monkeypatch.setattr(workers, "_CGROUP", Path(tmp_path))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    monkeypatch.setattr(workers.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 256 * GIB}))
    for name in ("SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (workers.cores(), workers.free_memory()) == (cores, memory * GIB)
    assert workers.fitting(20 * GIB, 1000) == max(1, min(cores, int(0.9 * memory / 20.7)))
    assert workers.fitting(1, 2) == min(2, cores)
