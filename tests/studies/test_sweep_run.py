"""Sweeps on real worker processes: kills, interruptions, divergence, and what runs leave behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mup_lightning.config.schema import Config
from mup_lightning.studies.sweep import run as sweep_run
from mup_lightning.studies.sweep.grid import expand
from mup_lightning.studies.sweep.run import measure, placed, run_trials
from mup_lightning.studies.sweep.spec import load
from mup_lightning.studies.workers import DIED
from mup_lightning.training.train import train
from tests.studies.sweeps import table, tiny_sweep, write


def start(file, folder):
    command = [sys.executable, "-m", "mup_lightning.cli.main", "sweep", str(file), "--out", str(folder)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # Whoever runs the tests in the background may ignore SIGINT, and so would the sweep.
    heed = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731
    return subprocess.Popen([*command, "--workers", "1"], **pipes, start_new_session=True, preexec_fn=heed)


def wait_until(true, process):
    for _ in range(9000):
        if true():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    raise AssertionError("waited in vain")


def test_a_killed_sweep_goes_on_without_repeating_anything(corpus, tmp_path, monkeypatch, capsys):
    """kill -9: the table is the undisturbed one in the end; a worker that dies costs one trial until the next time."""
    content = tiny_sweep(corpus, vary={"recipe.lr": {"log2": [-8, 100]}, "seed": [0, 1]})  # 2^100 diverges
    content["sweep"]["set"] |= {"schedule.warmup_steps": 0}
    file, folder = write(tmp_path, content), tmp_path / "out"
    trials = expand(load(file))

    sweep = start(file, folder)
    wait_until(lambda: len(table(folder)) >= 2, sweep)
    sweep.kill()
    sweep.communicate()
    before = {path.name: path.stat().st_mtime_ns for path in (folder / "trials").glob("*.json")}
    assert 2 <= len(before) < len(trials)
    victim = next(trial for trial in trials if f"{trial.hash}.json" not in before)

    own = sweep_run.run_trial
    died = lambda trial, **options: ("failed", DIED) if trial is victim else own(trial, **options)  # noqa: E731
    monkeypatch.setattr(sweep_run, "run_trial", died)
    summary = run_trials(trials, folder, 0)
    assert summary.failed == [f"{victim.label}: a worker process died: out of memory, or killed"]
    assert (summary.exit_code, summary.finished) == (1, len(trials) - 1)
    assert "FAILED" in capsys.readouterr().out
    monkeypatch.undo()
    summary = run_trials(trials, folder, 0)
    assert (summary.exit_code, sum(summary.states.values()), summary.finished) == (0, 1, len(trials))
    assert before.items() <= {path.name: path.stat().st_mtime_ns for path in (folder / "trials").iterdir()}.items()

    rows = {row["config_hash"]: row for row in table(folder)}
    assert len(table(folder)) == len(rows) == len(trials)
    for trial in trials:
        saved = json.loads((folder / "trials" / f"{trial.hash}.json").read_text())
        assert Config.from_plain(saved["config"]) == trial.config
        row = rows[trial.hash]
        if trial.config.recipe.lr > 1:
            assert row["loss"] == ""
            assert row["diverged"].startswith("step ")
            assert 0 < int(row["steps"]) < 60
        else:
            result = train(placed(trial, tmp_path / "reference"), progress=False)  # keeping changes no number
            assert (float(row["loss"]), row["diverged"]) == (result.validation_loss, "")
            assert int(row["parameters"]) == result.parameters
            assert saved["result"]["curve"][-1] < saved["result"]["curve"][0]
            assert len(saved["result"]["curve"]) == 50
    assert not (folder / "runs").exists()
    # No claim is left, but of a trial whose worker was killed between writing its result and letting go.
    left = {path.stem for path in (folder / "trials").iterdir() if path.suffix != ".json"}
    assert left <= {Path(name).stem for name in before}


def test_two_processes_share_a_sweep_and_ctrl_c_keeps_what_is_done(corpus, tmp_path):
    content = tiny_sweep(corpus, vary={"seed": list(range(8))})
    content["sweep"]["set"]["trainer.max_steps"] = 100
    file, folder = write(tmp_path, content), tmp_path / "out"
    both = [start(file, folder) for _ in range(2)]
    wait_until(lambda: len(table(folder)) >= 2, both[0])
    os.killpg(both[0].pid, signal.SIGINT)  # as a terminal does: the sweep and whoever it has started
    both[1].send_signal(signal.SIGTERM)  # as SLURM does
    for process in both:
        out, err = process.communicate(timeout=100)
        assert process.returncode == 130, err
        assert " of 8 are finished; the same command goes on from there" in out
        assert "Traceback" not in err + (folder / "workers.log").read_text()
    done = len(table(folder))
    assert 2 <= done < 8
    summary = run_trials(expand(load(file)), folder, 0)
    assert (summary.finished, summary.states["ran"]) == (8, 8 - done)
    assert len({row["config_hash"] for row in table(folder)}) == len(table(folder)) == 8


@pytest.fixture
def trial(corpus, tmp_path):
    return expand(load(write(tmp_path, tiny_sweep(corpus, vary={}))))[0]


def test_a_run_keeps_what_it_is_asked_to(trial, tmp_path):
    trial.config.trainer.log_every = 1
    bare = measure(trial, tmp_path / "runs", "off")
    assert not (tmp_path / "runs").exists()
    folder = tmp_path / "runs" / placed(trial, tmp_path).run.name
    for keep, checkpoints in (("on", True), ("logs", False)):  # what a killed worker has left is no obstacle
        kept = measure(trial, tmp_path / "runs", keep)
        assert json.loads((folder / "result.json").read_text())["validation_loss"] == kept["loss"] == bare["loss"]
        assert bool(list((folder / "checkpoints").glob("step_*"))) == checkpoints
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    losses = [event.value for event in events.Scalars("train/loss")]
    assert len(losses) == bare["steps"] == 60
    assert bare["train_loss"] == kept["train_loss"] == pytest.approx(sum(losses[-6:]) / 6)


def test_what_is_no_loss_costs_one_trial(trial, tmp_path, monkeypatch, capsys):
    """A validation loss that is not finite is a divergence; a fault of ours is a failure."""
    with monkeypatch.context() as patch:
        patch.setattr("mup_lightning.training.module.GPT2Module.validation_sums", lambda *_: (float("inf"), 1.0, 1.0))
        result = measure(trial, tmp_path, "off")
    assert (result["loss"], result["diverged"]) == (None, "step 60: the validation loss is inf")
    monkeypatch.setattr("mup_lightning.studies.sweep.run.train", lambda *_, **__: 1 / 0)
    assert run_trials([trial], tmp_path, 0).failed == [f"{trial.label}: ZeroDivisionError: division by zero"]
    assert "Traceback" in capsys.readouterr().err
