"""Real processes: two of them in step, Ctrl-C, and whatever the environment says."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import yaml

from mup_lightning.training.run import RunFolder, plain
from mup_lightning.training.train import train
from tests.training.reference import assert_same_training, weights_of
from tests.training.test_resume import assert_equal


def start(config, tmp_path, **environment):
    """`mup-lightning train` in a process of its own."""
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(plain(config)))
    return subprocess.Popen(
        [sys.executable, "-m", "mup_lightning.cli.main", "train", "-c", str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )


def finish(process):
    out, err = process.communicate(timeout=200)
    return process.returncode, out, err


def wait_for(path, process):
    """Wait until a file is there."""
    for _ in range(4000):
        if path.exists():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError(f"{path} did not appear")


@pytest.fixture
def taken():
    """A port that another program listens at."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield str(other.getsockname()[1])


def test_two_processes_that_the_program_starts_train_what_one_does_and_one_speaks(tiny, tmp_path, taken):
    """Whatever the environment says: another launcher's variables, and a port that is taken."""
    alone = train(tiny(**{"run.name": "alone"}))
    config = tiny(**{"trainer.strategy": "ddp", "trainer.devices": 2, "data.micro_batch": "auto", "run.name": "two"})
    stray = {"RANK": "1", "LOCAL_RANK": "1", "MASTER_PORT": taken, "OMPI_COMM_WORLD_LOCAL_RANK": "7"}
    code, out, err = finish(start(config, tmp_path, **stray))
    assert code == 0, err
    assert out.count("validation loss") == 1
    assert out.count("note: RANK=1, LOCAL_RANK=1 (as torchrun sets) is not heeded") == 1
    assert "10/10" in err
    result = json.loads(RunFolder(config).result_file.read_text())
    assert result["finished"]
    assert result["validation_loss"] == pytest.approx(alone.validation_loss, abs=1e-5)
    assert_same_training(weights_of(result["checkpoint"]), weights_of(alone.checkpoint))


def test_an_interrupted_run_saves_and_resumes_bit_identically(tiny, tmp_path):
    """Ctrl-C; what is killed in other ways is in `tests.distributed.kills`.

    It is a whole run of one process, whatever the environment says.
    """
    mistaken = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "TORCHELASTIC_RUN_ID": "x", "NODE_RANK": "1"}
    mistaken |= {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_JOB_NAME": "mine", "SLURM_NNODES": "3"}
    mistaken |= {"MASTER_ADDR": "nowhere", "PMI_RANK": "1", "PMI_SIZE": "2", "OMPI_COMM_WORLD_SIZE": "2"}
    long = {"trainer.max_steps": 150, "trainer.checkpoint_every": 25, "trainer.keep_checkpoints": 9}
    long |= {"trainer.validate_every": 0, "model.dropout": 0.1}
    straight = train(tiny(**long, **{"run.name": "straight"}))
    config = tiny(**long)
    folder = RunFolder(config)
    process = start(config, tmp_path, **mistaken)
    wait_for(folder.checkpoints / "step_00000025", process)
    process.send_signal(signal.SIGINT)
    code, out, err = finish(process)
    assert code == 130, err
    assert out.count("note: RANK=1, WORLD_SIZE=2, LOCAL_RANK=1 (as torchrun sets) is not heeded") == 1
    assert "stopped by a signal" in out
    assert "resume=last" in out
    assert not (folder.checkpoints / "step_00000150").exists()
    assert folder.config_file.exists()
    assert list(folder.tensorboard.glob("*tfevents*"))

    resumed = train(tiny(**long, **{"run.resume": "last"}))
    assert resumed.first_step >= 25
    assert resumed.validation_loss == straight.validation_loss
    assert_equal(straight.checkpoint, resumed.checkpoint)


def test_a_port_that_is_taken_is_one_line(tiny, tmp_path, taken):
    config = tiny(**{"trainer.strategy": "ddp", "trainer.devices": 2, "data.micro_batch": 2})
    first = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": taken}
    code, _, err = finish(start(config, tmp_path, **first))
    assert code == 1
    assert f"error: the processes cannot meet at 127.0.0.1:{taken}" in err
    assert "Traceback" not in err
