"""One cluster for all tests of this folder, and runs on it that take seconds."""

import contextlib
import io
import os

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mup_lightning.cli.main import main
from mup_lightning.config.schema import leaves
from tests.conftest import TINY
from tests.slurm.cluster import Cluster, obstacle

STEPS = 400
OPTIONS = leaves(TINY) | {
    "model.width": 16,
    "trainer.accelerator": "auto",
    "trainer.strategy": "ddp",
    "trainer.nodes": 2,
    "trainer.max_steps": STEPS,
    "trainer.validate_every": 0,
    "trainer.checkpoint_every": 50,
    "trainer.keep_checkpoints": 99,
    "trainer.log_every": 1,
    "trainer.feature_norms_every": 0,
    "slurm.gpus": 0,
}


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """A real SLURM cluster of two nodes on this machine."""
    if reason := obstacle():
        # .ci/run sets this, so that nothing is left out there without anybody noticing.
        (pytest.fail if "REQUIRE_SLURM" in os.environ else pytest.skip)(f"no SLURM cluster can be started: {reason}")
    cluster = Cluster(tmp_path_factory.mktemp("slurm") / "cluster")
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down()


class Runs:
    """Runs on a cluster, in one folder."""

    def __init__(self, cluster, corpus, root):
        self.cluster, self.corpus, self.root = cluster, corpus, root

    def command(self, name, **changes):
        """The options of `mup-lightning submit`."""
        options = OPTIONS | {"data.path": self.corpus, "run.root": self.root, "run.name": name} | changes
        return ["submit", *(f"--{key}={value}" for key, value in options.items())]

    def submit(self, name, **changes):
        """Submit a run; returns its job's number."""
        return submitted(self.command(name, **changes))

    def checkpoint(self, name, step):
        """Where a checkpoint will be."""
        return self.root / name / "checkpoints" / f"step_{step:08d}"

    def newest(self, name):
        """The step of a run's newest checkpoint."""
        return max(int(path.name[5:]) for path in (self.root / name / "checkpoints").glob("step_*"))

    def log(self, name, job):
        """What the job has printed."""
        return (self.root / name / "slurm" / f"{job}.log").read_text()

    def wait_for_step(self, name, job, step):
        """Wait until a job has saved a checkpoint."""
        self.cluster.wait(
            f"{name}: step {step}", self.checkpoint(name, step).exists, explain=lambda: self.log(name, job)
        )

    def wait_for_state(self, name, job, state):
        """Wait for a job's state."""
        reached = lambda: self.cluster.field(job, "JobState") == state  # noqa: E731
        self.cluster.wait(f"{name}: {state}", reached, explain=lambda: self.log(name, job))

    def losses(self, name):
        """Step -> training loss, as TensorBoard shows it."""
        events = EventAccumulator(str(self.root / name / "tensorboard"), size_guidance={"scalars": 0}).Reload()
        points = events.Scalars("train/loss")
        assert len({point.step for point in points}) == len(points)
        return {point.step: point.value for point in points}


def submitted(argv):
    """Run `mup-lightning submit`; returns the job's number."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(argv) == 0
    return out.getvalue().removeprefix("job ").partition(":")[0]


@pytest.fixture(scope="module")
def module_runs(cluster, corpus, tmp_path_factory):
    return Runs(cluster, corpus, tmp_path_factory.mktemp("runs"))


@pytest.fixture
def runs(module_runs, monkeypatch):
    """The cluster's runs, with this process's SLURM commands going to the cluster."""
    monkeypatch.setenv("SLURM_CONF", str(module_runs.cluster.conf))
    return module_runs


@pytest.fixture(scope="module")
def straight(module_runs):
    """A run over two nodes that nothing disturbs; returns its job's number."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(module_runs.cluster.conf))
        job = module_runs.submit("straight")
    module_runs.wait_for_state("straight", job, "COMPLETED")
    return job
