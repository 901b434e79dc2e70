"""A sweep as an array job on a real cluster: every configuration once, whatever happens to a task."""

import pytest

from mup_lightning.slurm import submit
from tests.slurm.conftest import submitted
from tests.studies.sweeps import table, tiny_sweep, write


@pytest.fixture
def file(tmp_path, corpus):
    content = tiny_sweep(corpus, vary={"recipe.lr": [0.01, 0.02, 0.03, 0.04]})
    content["sweep"]["set"] |= {"recipe.optimizer": "muon_kimi", "model.depth": 2, "trainer.max_steps": 300}
    return write(tmp_path, content)


def test_an_array_runs_every_configuration_once_even_if_a_task_is_stopped(cluster, file, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
    out = tmp_path / "table"
    argv = ["submit", "--sweep", str(file), "--tasks", "2", "--workers", "1", "--out", str(out), "--slurm.gpus", "0"]
    job = submitted(argv)
    log = out / "slurm" / f"{job}_1.log"

    def wait_for(task, state):
        reached = lambda: cluster.field(f"{job}_{task}", "JobState") == state  # noqa: E731
        cluster.wait(f"task {task}: {state}", reached, explain=log.read_text)

    cluster.wait(
        "task 1 has run one of its two", lambda: log.exists() and " loss " in log.read_text(), explain=log.read_text
    )
    cluster.run("scancel", "--signal=TERM", f"{job}_1")  # what SLURM sends before the time limit
    wait_for(1, "PENDING")
    for task in (1, 2):
        wait_for(task, "COMPLETED")
    assert "the same command goes on from there" in log.read_text()
    assert cluster.field(f"{job}_1", "Restarts") == "1"
    assert "1 of them finished before" in log.read_text()
    rates = sorted(row["recipe.lr"] for row in table(out))
    assert rates == ["0.01", "0.02", "0.03", "0.04"]


def test_every_task_that_is_stopped_comes_back_alone_and_one_that_is_cancelled_does_not(
    cluster, file, tmp_path, monkeypatch
):
    """One of the tasks has the number of the whole array as its SLURM_JOB_ID."""
    monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
    program = tmp_path / "program"  # in place of a sweep: waits for TERM, and is done when it comes back
    program.write_text(
        "#!/bin/bash\n[ -z \"$SLURM_RESTART_COUNT\" ] || exit 0\ntrap 'exit 130' TERM\n"
        "echo job $SLURM_JOB_ID of array $SLURM_ARRAY_JOB_ID\nwhile :; do sleep 0.1; done\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(submit, "_program", lambda: program)
    out, tasks = tmp_path / "table", [1, 2, 3, 4]
    job = submitted(["submit", "--sweep", str(file), "--tasks", "4", "--out", str(out), "--slurm.gpus", "0"])
    logs = {task: out / "slurm" / f"{job}_{task}.log" for task in tasks}
    cluster.wait("all run", lambda: all(log.exists() and "of array" in log.read_text() for log in logs.values()))
    assert sum(f"job {job} of array {job}" in log.read_text() for log in logs.values()) == 1
    state = lambda task: cluster.field(f"{job}_{task}", "JobState")  # noqa: E731
    for task in tasks[:3]:
        cluster.run("scancel", "--signal=TERM", f"{job}_{task}")
        cluster.wait(
            f"task {task} has come back", lambda task=task: state(task) == "COMPLETED", explain=logs[task].read_text
        )
        assert [cluster.field(f"{job}_{other}", "Restarts") for other in tasks] == ["1"] * task + ["0"] * (4 - task)
    cluster.run("scancel", f"{job}_4")
    cluster.wait("it is gone", lambda: not cluster.run("squeue", "-h"), explain=logs[4].read_text)
    assert (state(4), cluster.field(f"{job}_4", "Restarts")) == ("CANCELLED", "0")
