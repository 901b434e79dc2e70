"""When one process fails, all of them end, and one line says why: whatever the strategy, the fault and the moment."""

import os
import signal
import time

import psutil
import pytest

from mup_lightning.training.run import RunFolder
from tests.training.test_processes import finish, start, wait_for

pytestmark = pytest.mark.timeout(300)
# In place of a site's own start-up file: a fault in the second process, in the third call of a method.
PLANT = """
import os, signal, sys, threading, time
WHERE = {"step": ("mup_lightning.training.module", "GPT2Module", "training_step", 3),
         "set-up": ("mup_lightning.data.datamodule", "TokenDataModule", "setup", 1)}
def plant(where, what):
    module, name, method, count = WHERE[where]
    while not hasattr(sys.modules.get(module), name):
        time.sleep(0.001)
    owner, calls = getattr(sys.modules[module], name), []
    original = getattr(owner, method)
    def faulty(self, *arguments, **options):
        calls.append(arguments)
        if len(calls) == count:
            if what == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            from mup_lightning.errors import UserError
            raise (UserError if what == "refused" else RuntimeError)("a fault of one process")
        return original(self, *arguments, **options)
    setattr(owner, method, faulty)
if os.environ.get("LOCAL_RANK") == "1" and "FAULT" in os.environ:
    threading.Thread(target=plant, args=os.environ["FAULT"].split()).start()
"""
KILLED = "error: process 2 of 2 was killed by SIGKILL, perhaps because memory ran out, and the others have been ended"
FAILED = "error: process 2 of 2 has failed, and the others have been ended"
FAULTS = [
    ("ddp", "step killed", KILLED),
    ("zero0", "step error", FAILED),
    ("zero1", "set-up refused", "error: a fault of one process"),
    ("zero2", "set-up killed", KILLED),
    ("zero3", "step killed", KILLED),
]


@pytest.fixture
def begin(config_of, tmp_path):
    """begin(strategy, steps, **environment): training of two processes; all have a variable MINE."""
    (tmp_path / "sitecustomize.py").write_text(PLANT)
    begun = []

    def run(strategy, steps=8, **environment):
        config = config_of(tmp_path.name, strategy, 2, **{"trainer.max_steps": steps, "trainer.checkpoint_every": 1})
        path = f"{tmp_path}{os.pathsep}{os.environ['PYTHONPATH']}"
        begun.append(start(config, tmp_path, PYTHONPATH=path, MINE=str(tmp_path), **environment))
        return begun[0], RunFolder(config).checkpoints

    yield run
    for process in [*begun, *mine(tmp_path)]:
        process.kill()


def mine(tmp_path):
    """The processes that a test has started, and those that they have."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("MINE") == str(tmp_path) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:  # it has ended, or is not ours
            continue
    return found


@pytest.mark.parametrize(("strategy", "fault", "message"), FAULTS)
def test_one_process_that_fails_ends_all(begin, tmp_path, strategy, fault, message):
    process, _ = begin(strategy, FAULT=fault)
    code, _, err = finish(process)
    assert not mine(tmp_path)
    assert code == 1
    assert err.count("error: ") == 1, err
    assert message in err
    assert ("Traceback" in err) == ("error" in fault), err


def test_ctrl_c_stops_all_processes_after_the_same_step(begin, tmp_path):
    process, checkpoints = begin("ddp", steps=5000)
    wait_for(checkpoints, process)
    process.send_signal(signal.SIGINT)
    code, out, err = finish(process)
    assert not mine(tmp_path)
    assert code == 130, err
    assert out.count("stopped by a signal before the last step") == 1
    assert "error" not in err
    assert "Traceback" not in err


def test_no_process_outlives_the_one_that_started_it(begin, tmp_path):
    process, checkpoints = begin("zero1", steps=5000)
    wait_for(checkpoints, process)
    process.kill()
    while mine(tmp_path):
        time.sleep(0.1)


def test_processes_with_different_configurations_do_not_start(config_of, two):
    """Of different files, or of what `auto` has found on their machines."""
    ours, theirs = (config_of("differing", "ddp", 2, **{"data.micro_batch": n}) for n in (2, 4))
    assert "data.micro_batch is 2 in process 1 and 4 in process 2" in two.train([ours], [theirs])["differing"]
