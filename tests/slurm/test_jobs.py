"""Jobs on a real cluster of two nodes: trained right, preempted, cancelled, killed, frozen; always continued."""

import os
import re
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from mup_lightning.training.train import train
from tests.slurm.cluster import NODES, end
from tests.slurm.conftest import OPTIONS, STEPS
from tests.training.reference import assert_same_training, weights_of


def assert_identical(runs, name):
    """Every loss and every final weight equals that of the undisturbed run."""
    assert runs.losses(name) == runs.losses("straight")
    found, wanted = (weights_of(runs.checkpoint(run, STEPS)) for run in (name, "straight"))
    for key, weight in wanted.items():
        assert torch.equal(weight, found[key]), key


def test_two_nodes_train_what_one_process_does(runs, straight, tiny):
    changes = {key: value for key, value in OPTIONS.items() if not key.startswith("slurm")}
    changes |= {"trainer.strategy": "single", "trainer.nodes": 1, "trainer.accelerator": "cpu", "run.name": "alone"}
    alone = train(tiny(**changes))
    assert_same_training(weights_of(runs.checkpoint("straight", STEPS)), weights_of(Path(alone.checkpoint)), bound=1e-4)
    assert f"{alone.validation_loss:.4f} nats per token" in runs.log("straight", straight)


def test_a_preempted_job_goes_back_into_the_queue_and_continues_exactly(runs, straight):
    job = runs.submit("preempted")
    runs.wait_for_step("preempted", job, 50)
    runs.cluster.run("sbatch", "-p", "urgent", "--exclusive", "-N2", "-o", "/dev/null", "--wrap", "sleep 1")
    runs.wait_for_state("preempted", job, "COMPLETED")
    assert runs.cluster.field(job, "Restarts") == "1"
    log = runs.log("preempted", job)
    step = int(log.partition("goes back into the queue, and continues after step ")[2].split()[0])
    assert 50 < step < STEPS
    assert runs.checkpoint("preempted", step).exists()
    assert f"step {step + 1}/{STEPS}" in log
    assert_identical(runs, "preempted")


def test_a_deepspeed_job_told_to_save_trains_what_one_without_does(runs, straight):
    job = runs.submit("zero1", **{"trainer.strategy": "zero1"})
    runs.wait_for_step("zero1", job, 50)
    runs.cluster.run("scancel", "--signal=USR1", job)  # what SLURM sends before the time limit
    runs.wait_for_state("zero1", job, "COMPLETED")
    assert runs.cluster.field(job, "Restarts") == "1"
    assert "goes back into the queue" in runs.log("zero1", job)
    found, wanted = runs.losses("zero1"), runs.losses("straight")
    assert found.keys() == wanted.keys()
    assert max(abs(found[step] - wanted[step]) for step in wanted) < 1e-3


def test_cancelled_killed_and_frozen_jobs_can_all_be_continued_exactly(runs, straight):
    name, cluster = "unlucky", runs.cluster
    job = runs.submit(name)
    runs.wait_for_step(name, job, 50)
    cluster.run("scancel", job)
    runs.wait_for_state(name, job, "CANCELLED")
    assert "was cancelled" in runs.log(name, job)

    job = runs.submit(name, **{"run.resume": "auto"})
    runs.wait_for_step(name, job, (runs.newest(name) // 50 + 1) * 50)
    end(trainers(cluster, SLURM_PROCID="1")[0], signal.SIGKILL)
    runs.wait_for_state(name, job, "FAILED")
    assert not cluster.processes(SLURM_JOB_ID=job)

    # While processes save, one waits for another as long as SLURM lets it: one save, and steps for seconds after it,
    # in any exchange of which the node may be frozen.
    save = runs.newest(name) + 20
    job = runs.submit(name, **{"run.resume": "auto", "trainer.checkpoint_every": save})
    runs.wait_for_step(name, job, save)
    time.sleep(0.4)
    frozen = cluster.node_processes(NODES[1])
    for process in frozen:
        os.kill(process, signal.SIGSTOP)
    runs.wait_for_state(name, job, "PENDING")
    for process in frozen:
        end(process, signal.SIGKILL)
    cluster.start_node(NODES[1])
    runs.wait_for_state(name, job, "COMPLETED")
    assert cluster.field(job, "Restarts") == "1"
    assert "received SIGTERM, but the step does not end" in runs.log(name, job)
    assert_identical(runs, name)


def test_signals_during_startup_are_kept_and_do_not_requeue_forever(runs, tmp_path):
    name, cluster = "hurried", runs.cluster
    # As on a slow file system: Python takes a while before it gets to our code.
    (tmp_path / "sitecustomize.py").write_text("import time; time.sleep(2)")
    job = runs.submit(name, **{"slurm.setup": f"['export PYTHONPATH={tmp_path}:$PYTHONPATH']"})
    for restarts in (0, 1):
        # Before our code begins, and while it imports torch.
        for mask in ("SigIgn", "SigBlk"):
            cluster.wait(f"{restarts}: {mask}", lambda count=restarts, mask=mask: masked(cluster, job, count, mask))
            cluster.run("scancel", "--signal=USR1", job)
        if restarts == 0:
            cluster.wait("requeued", lambda: cluster.field(job, "Restarts") == "1", explain=lambda: runs.log(name, job))
    runs.wait_for_state(name, job, "FAILED")
    assert "has made no step since it was requeued" in runs.log(name, job)
    assert not (runs.root / name / "checkpoints").exists()


def trainers(cluster, **variables):
    """The ids of training processes, and not of the job's script or its srun, which have the same variables."""
    return [p.pid for p in cluster.processes(**variables) if "python" in " ".join((p.info["cmdline"] or [])[:1])]


def masked(cluster, job, restarts, mask):
    """Whether rank 0 of a job, restarted so often, has USR1 in a mask of its signals."""
    wanted = {"SLURM_JOB_ID": job, "SLURM_PROCID": "0"} | ({"SLURM_RESTART_COUNT": str(restarts)} if restarts else {})
    for process in trainers(cluster, **wanted):
        with suppress(OSError):  # it has ended, as the one soon does that looks for a free port
            status = dict(line.split(":\t", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
            if int(status[mask], 16) & 1 << (signal.SIGUSR1 - 1):
                return True
    return False


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slurm.partition": "nowhere"}, "sbatch refuses the job: .*invalid partition"),
        ({"slurm.gpus": 3, "data.batch_size": 24}, "sbatch refuses the job: .*not available"),
        ({"run.name": "straight"}, "already holds a run with a checkpoint at step_"),
    ],
)
def test_what_the_cluster_cannot_do_is_refused_at_submission(runs, straight, refused, changes, message):
    assert re.search(message, refused(runs.command("refused", **changes)))
    assert not (runs.root / "refused").exists()
