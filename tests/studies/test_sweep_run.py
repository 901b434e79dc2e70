"""Sweeps on real worker processes: kill -9 of sweep and workers, divergence, hopeless runs."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mup_lightning.cli.sweep import compose, last_screen
from mup_lightning.config.schema import Config
from mup_lightning.studies.sweep import pool
from mup_lightning.studies.sweep.early import Judge
from mup_lightning.studies.sweep.grid import expand, placed
from mup_lightning.studies.sweep.locks import Locks
from mup_lightning.studies.sweep.run import SweepRun
from mup_lightning.studies.sweep.spec import EarlyStop, load
from mup_lightning.studies.sweep.worker import Task, run
from mup_lightning.training.train import train
from tests.studies.sweeps import tiny_sweep, write


def rows_of(folder):
    return list(csv.DictReader((folder / "results.csv").open()))


def wait_until(true, process):
    for _ in range(6000):
        if true():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError("waited in vain")


def test_killed_sweeps_go_on_without_repeating_anything(corpus, tmp_path, monkeypatch):
    """kill -9 of the sweep, of a worker once, of a worker at the same run always: the table is the undisturbed one."""
    vary = {"recipe.lr": {"log2": [-8, -6, 100]}, "seed": [0, 1, 2]}  # 2^100 diverges
    content = tiny_sweep(corpus, vary=vary)
    content["sweep"]["set"] |= {"schedule.warmup_steps": 0}
    file, folder = write(tmp_path, content), tmp_path / "out"
    cells = expand(load(file), compose)

    sweep = subprocess.Popen(
        [sys.executable, "-m", "mup_lightning.cli.main", "sweep", str(file), "--out", str(folder), "--workers", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: (folder / "results.csv").exists() and len(rows_of(folder)) >= 2, sweep)
    sweep.kill()
    sweep.communicate()
    before = (folder / "results.csv").read_text()
    assert 2 <= len(rows_of(folder)) < len(cells)

    done = {row["config_hash"] for row in rows_of(folder)}
    once, always = [cell.hash for cell in cells if cell.hash not in done][1:3]
    given = []
    give = pool.Worker.give

    def give_and_kill(worker, cell, task):
        give(worker, cell, task)
        given.append(cell.hash)
        if worker.ready and (cell.hash == always or (cell.hash == once and given.count(once) == 1)):
            os.kill(worker._process.pid, signal.SIGKILL)

    monkeypatch.setattr(pool.Worker, "give", give_and_kill)
    monkeypatch.setattr(pool.Worker, "__init__", _ready_before_its_first_run(pool.Worker.__init__))
    second = SweepRun(cells, folder, workers=1)
    summary = second.run()
    assert not set(given) & done
    assert given.count(once) == 2
    assert given.count(always) == 2
    assert list(summary.failed) == [always]
    assert summary.ran == len(cells) - len(done) - 1
    failures = json.loads((folder / "failures.json").read_text())
    assert "the worker died (signal 9; out of memory?), 2 times" in failures[always]["reason"]
    assert "FAILED" in last_screen(summary, folder, len(cells))
    assert always not in {row["config_hash"] for row in rows_of(folder)}

    monkeypatch.setattr(
        pool.Worker, "give", lambda worker, cell, task: (given.append(cell.hash), give(worker, cell, task))
    )
    given.clear()
    summary = SweepRun(cells, folder, workers=1).run()
    assert given == [always]
    assert (summary.ran, summary.before, summary.failed) == (1, len(cells) - 1, {})
    assert not (folder / "failures.json").exists()
    assert (folder / "results.csv").read_text().startswith(before)

    rows = {row["config_hash"]: row for row in rows_of(folder)}
    assert len(rows_of(folder)) == len(rows) == len(cells)
    saved = json.loads((folder / "configurations.json").read_text())
    for cell in cells:
        assert Config.from_plain(saved[cell.hash]) == cell.config
        row = rows[cell.hash]
        if cell.config.recipe.lr > 1:
            assert row["loss"] == ""
            assert row["diverged"].startswith("step ")
            assert 0 < int(row["steps"]) < 60
        else:
            config = placed(cell.config, str(tmp_path / "reference"), cell.hash)
            result = train(config, progress=False)  # keeps logs and checkpoints: it must not change a number
            assert float(row["loss"]) == result.validation_loss
            assert row["diverged"] == ""
    assert not (folder / "runs").exists()


PARENT = """
import multiprocessing, sys, threading, time
from mup_lightning.studies.workers import die_with_parent

def child(lock_file):
    from pathlib import Path
    from mup_lightning.studies.sweep.locks import Locks
    locks = Locks(Path(lock_file))
    assert locks.claim("a" * 64)
    threading.Thread(target=die_with_parent, daemon=True).start()
    print("busy", flush=True)
    time.sleep(100)

if __name__ == "__main__":
    multiprocessing.get_context("spawn").Process(target=child, args=(sys.argv[1],)).start()
    time.sleep(100)
"""


def test_a_busy_worker_does_not_outlive_its_sweep(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    arguments = [sys.executable, str(tmp_path / "parent.py"), str(tmp_path)]
    parent = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    assert parent.stdout.readline() == "busy\n"
    locks = Locks(tmp_path)  # what tells us whether the child lives
    assert not locks.claim("a" * 64)
    parent.kill()
    parent.communicate()  # returns when the child, too, has closed the pipe
    assert locks.claim("a" * 64)


def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(corpus, tmp_path):
    content = tiny_sweep(corpus, vary={"seed": list(range(8))})
    content["sweep"]["set"]["trainer.max_steps"] = 300
    file, folder = write(tmp_path, content), tmp_path / "out"
    sweep = subprocess.Popen(
        [sys.executable, "-m", "mup_lightning.cli.main", "sweep", str(file), "--out", str(folder), "--workers", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_until(lambda: (folder / "results.csv").exists() and len(rows_of(folder)) >= 2, sweep)
    os.killpg(sweep.pid, signal.SIGINT)  # as a terminal does: to the sweep and whoever it has started
    out, err = sweep.communicate(timeout=60)
    assert sweep.returncode == 130, err
    done = len(rows_of(folder))
    assert 2 <= done < 8
    assert f"stopped: {done} of 8 are done; the same command goes on from there" in out
    assert f"[{done}/8] seed=" in err
    assert "Traceback" not in err + (folder / "workers.log").read_text()


def _ready_before_its_first_run(init):
    def wait(worker, *arguments):
        init(worker, *arguments)
        assert worker.hear() == ("ready", None)
        worker.is_ready()

    return wait


@pytest.fixture
def cell(corpus, tmp_path):
    return expand(load(write(tmp_path, tiny_sweep(corpus, vary={}))), compose)[0]


def test_a_run_keeps_nothing_unless_asked(cell, tmp_path):
    config = placed(cell.config, str(tmp_path / "runs"), "run")
    bare = run(Task(config, keep=False), lambda step: None)
    assert not (tmp_path / "runs").exists()
    config.trainer.log_every = 1
    kept = run(Task(config, keep=True), lambda step: None)
    folder = tmp_path / "runs" / "run"
    assert json.loads((folder / "result.json").read_text())["validation_loss"] == kept.loss == bare.loss
    assert list((folder / "checkpoints").glob("step_*"))
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    losses = [event.value for event in events.Scalars("train/loss")]
    assert len(losses) == bare.steps == 60
    assert bare.train_loss == kept.train_loss == pytest.approx(sum(losses[-6:]) / 6)
    assert bare.parameters == json.loads((folder / "result.json").read_text())["parameters"]
    again = run(Task(config, keep=True), lambda step: None)  # what a killed worker left is no obstacle
    assert again.loss == kept.loss


def test_divergence_is_a_result(cell, tmp_path):
    config = placed(cell.config, str(tmp_path), "run")
    config.recipe.lr = 2.0**100
    outcome = run(Task(config, keep=False), lambda step: None)
    assert outcome.loss is None
    assert outcome.stopped == ""
    step = int(outcome.diverged.removeprefix("step ").partition(":")[0])
    assert outcome.steps == step - 1
    assert "nan" in outcome.diverged or "inf" in outcome.diverged


def test_a_validation_loss_that_is_not_finite_is_divergence(cell, tmp_path, monkeypatch):
    from mup_lightning.training.module import GPT2Module

    monkeypatch.setattr(GPT2Module, "validation_loss", lambda self: float("inf"))
    outcome = run(Task(placed(cell.config, str(tmp_path), "run"), keep=False), lambda step: None)
    assert (outcome.loss, outcome.diverged, outcome.steps) == (None, "step 60: the validation loss is inf", 60)


def test_hopeless_runs_stop_and_are_no_divergence(cell, tmp_path):
    config = placed(cell.config, str(tmp_path), "run")
    full = run(Task(config, keep=False, judge_after=20, limit=1e9), lambda step: None)
    assert full.loss is not None
    assert full.stopped == ""
    assert full.early_loss is not None
    judge = Judge(EarlyStop(after=20, worse_than=0.0), [cell], [])
    assert judge.limit(cell)[1] == cell.unigram_loss
    judge.learn(cell, full.early_loss - 0.01)
    assert judge.limit(cell)[1] == min(full.early_loss - 0.01, cell.unigram_loss)
    stopped = run(Task(config, False, *judge.limit(cell)), lambda step: None)
    assert (stopped.loss, stopped.diverged, stopped.steps) == (None, "", 20)
    assert stopped.early_loss == full.early_loss
    assert "nats worse than the" in stopped.stopped
    # A restart knows what the table knows.
    row = {"config_hash": cell.hash, "early_loss": repr(0.5)}
    assert Judge(EarlyStop(20, 1.0), [cell], [row]).limit(cell)[1] == 1.5


def test_no_step_is_told_but_now_and_then(cell, tmp_path):
    told = []
    run(Task(placed(cell.config, str(tmp_path), "run"), keep=False), told.append)
    assert told == sorted(set(told))
    assert asdict(cell.config)["run"]["name"] == "default"  # the cell's own configuration stays as it was
