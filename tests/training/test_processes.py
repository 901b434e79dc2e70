"""Real processes: two of them in step, Ctrl-C, and kill -9."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict

import pytest
import torch
import yaml

from mup_lightning.training.run import RunFolder, plain
from mup_lightning.training.train import train
from tests.training.reference import assert_same_training, weights_of


def start(config, tmp_path, *options):
    """`mup-lightning train` in a process of its own."""
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(plain(asdict(config))))
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("LOCAL_RANK", "MASTER_", "NODE_RANK"))}
    return subprocess.Popen(
        [sys.executable, "-m", "mup_lightning.cli.main", "train", "-c", str(file), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
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


def test_two_processes_that_the_program_starts_train_what_one_does_and_one_speaks(tiny, tmp_path):
    alone = train(tiny(**{"run.name": "alone"}))
    config = tiny(**{"trainer.strategy": "ddp", "trainer.devices": 2, "data.micro_batch": 2, "run.name": "two"})
    code, out, err = finish(start(config, tmp_path))
    assert code == 0, err
    assert out.count("validation loss") == 1
    result = json.loads(RunFolder(config).result_file.read_text())
    assert result["validation_loss"] == pytest.approx(alone.validation_loss, abs=1e-5)
    assert_same_training(weights_of(result["checkpoint"]), weights_of(alone.checkpoint))


def test_interrupted_and_killed_runs_resume_bit_identically(tiny, tmp_path):
    """Ctrl-C saves and leaves; kill -9 costs the steps since the last checkpoint. Neither changes a number."""
    long = {"trainer.max_steps": 300, "trainer.checkpoint_every": 25, "trainer.keep_checkpoints": 9}
    long |= {"trainer.validate_every": 0, "model.dropout": 0.1}
    straight = train(tiny(**long, **{"run.name": "straight"}))
    config = tiny(**long)
    folder, last = RunFolder(config), ("--run.resume", "last")

    process = start(config, tmp_path)
    wait_for(folder.checkpoints / "step_00000025", process)
    process.send_signal(signal.SIGINT)
    code, out, err = finish(process)
    assert code == 130, err
    assert "stopped by a signal" in out
    assert "resume=last" in out
    stopped = max(path.name for path in folder.checkpoints.glob("step_*"))

    process = start(config, tmp_path, *last)
    wait_for(folder.checkpoints / f"step_{(int(stopped[5:]) // 25 + 2) * 25:08d}", process)
    process.kill()
    finish(process)
    assert not (folder.checkpoints / "step_00000300").exists()

    code, out, err = finish(start(config, tmp_path, *last))
    assert code == 0, err
    resumed = json.loads(folder.result_file.read_text())
    assert resumed["validation_loss"] == straight.validation_loss
    found = weights_of(resumed["checkpoint"])
    assert all(torch.equal(weight, found[name]) for name, weight in weights_of(straight.checkpoint).items())
