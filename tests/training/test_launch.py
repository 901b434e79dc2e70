"""Which process of a run this is, whatever the environment: launchers' variables whole, half there, stray, damaged."""

import re
import signal

import pytest

from mup_lightning.config.schema import TrainerConfig
from mup_lightning.errors import UserError
from mup_lightning.files import write_json
from mup_lightning.training import launch
from mup_lightning.training.launch import LAUNCHERS, Process

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}
SRUN = {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0", "SLURM_NTASKS": "2"}
SALLOC = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_NNODES": "2"}
SBATCH = SALLOC | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}  # outside of srun
MPIRUN = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
ALONE, STARTS, REFUSED = Process(), None, "refused"


@pytest.fixture
def variables(monkeypatch):
    """Sets the environment's launchers' variables to these alone."""

    def replace(values):
        for name in [name for names in LAUNCHERS.values() for name in names]:
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return replace


@pytest.mark.parametrize(
    ("strategy", "devices", "nodes", "environment", "process", "said"),
    [
        ("single", 1, 1, {}, ALONE, ""),
        ("single", 1, 1, SALLOC, ALONE, ""),
        ("single", 1, 1, SBATCH, ALONE, ""),
        ("single", 1, 1, {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, ALONE, ""),
        ("single", 1, 1, SRUN, ALONE, "SLURM_PROCID=1, SLURM_STEP_NUM_TASKS=2, SLURM_LOCALID=0 (as srun sets)"),
        ("single", 1, 1, {"RANK": "1"}, ALONE, "RANK=1 (as torchrun sets) is not heeded"),
        ("single", 1, 1, {"LOCAL_RANK": "2"}, ALONE, "LOCAL_RANK=2 (as torchrun sets) is not heeded"),
        ("single", 1, 1, {"PMI_SIZE": "2"}, ALONE, "trains a whole run of its own"),
        ("single", 1, 1, MPIRUN, ALONE, "(as mpirun sets)"),
        ("ddp", 1, 1, {}, ALONE, ""),
        ("ddp", 2, 1, {}, STARTS, ""),
        ("ddp", 2, 1, SALLOC, STARTS, ""),
        ("ddp", 2, 1, SBATCH, STARTS, ""),
        ("ddp", 2, 1, SBATCH | {"SLURM_STEP_NUM_TASKS": "1"}, STARTS, ""),  # srun --pty bash
        ("ddp", 2, 1, {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, STARTS, ""),
        ("ddp", 2, 1, {"RANK": "1"}, STARTS, "starts 2 processes of its own"),
        ("ddp", 2, 1, MPIRUN, Process(1, 2, 1, "mpirun"), ""),
        ("zero1", 1, 2, SRUN, Process(1, 2, 0, "srun"), ""),
        ("zero3", 2, 2, TORCHRUN, Process(3, 4, 1, "torchrun"), ""),
        ("ddp", 2, 2, SRUN | TORCHRUN, Process(3, 4, 1, "torchrun"), ""),  # srun starts one torchrun a node
        ("ddp", 2, 1, SRUN | {"RANK": "5", "WORLD_SIZE": "9"}, Process(1, 2, 0, "srun"), ""),
        ("ddp", 4, 1, SRUN, REFUSED, "srun has started 2 processes, but trainer.devices x trainer.nodes is 4 x 1 = 4"),
        ("ddp", 1, 1, TORCHRUN, REFUSED, "torchrun has started 4 processes, but trainer.devices x trainer.nodes is 1"),
        ("ddp", 1, 2, SBATCH, REFUSED, "trainer.nodes is 2, but no launcher has started this process"),
        ("single", 1, 1, {"RANK": "first"}, REFUSED, "RANK is 'first' in the environment; expected a whole number"),
        ("ddp", 2, 1, {"SLURM_PROCID": ""}, REFUSED, "SLURM_PROCID is '' in the environment; expected a whole number"),
    ],
)
def test_this_process(variables, strategy, devices, nodes, environment, process, said):
    variables(environment)
    trainer = TrainerConfig(strategy=strategy, devices=devices, nodes=nodes)
    if process == REFUSED:
        with pytest.raises(UserError, match=f"^{re.escape(said)}"):
            launch.this_process(trainer)
        return
    assert launch.this_process(trainer) == process
    note = launch.note(trainer) or ""
    assert said in note
    assert bool(said) == bool(note)
    assert "\n" not in note


@pytest.mark.parametrize(
    ("launcher", "environment", "place"),
    [
        ("torchrun", {"MASTER_ADDR": "there", "MASTER_PORT": "7"}, ("there", 7)),
        ("srun", {"SLURM_STEP_NODELIST": "n[3-5,9]", "SLURM_JOB_ID": "123456"}, ("n3", 18456)),
        ("srun", {"MASTER_ADDR": "there", "MASTER_PORT": "7"}, ("there", 7)),
        ("mpirun", {"MASTER_ADDR": "there"}, None),
    ],
)
def test_where_processes_meet(monkeypatch, launcher, environment, place):
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    process = Process(1, 2, 1, launcher)
    if place is None:
        with pytest.raises(UserError, match="MASTER_ADDR is there and MASTER_PORT is None; expected"):
            launch.meeting_point(process)
    else:
        assert launch.meeting_point(process) == place


FULL, BROKEN = {"refusal": True, "text": "the disk is full"}, {"refusal": False, "text": "Traceback: broken"}
KILL, TERM, INT = -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT


@pytest.mark.parametrize(
    ("codes", "caught", "reports", "code", "said"),
    [
        ([0, 0], [], {}, 0, ""),
        ([130, 130], [INT], {}, 130, ""),  # saved and stopped
        ([0, 0], [INT], {}, 0, ""),  # it came after the last step
        ([INT, INT], [INT], {}, 130, "interrupted"),
        ([launch.INTERRUPTED, 1], [INT, INT], {1: BROKEN}, 130, "interrupted"),
        ([None, TERM], [TERM], {}, 130, "interrupted"),
        ([1, 1], [INT], {0: FULL, 1: FULL}, 1, "error: the disk is full"),
        ([1, 1], [], {0: FULL, 1: FULL}, 1, "error: the disk is full"),
        ([1, 1], [], {0: BROKEN, 1: FULL}, 1, "error: the disk is full"),
        ([None, 1], [], {1: FULL}, 1, "error: the disk is full"),
        ([1, KILL], [], {0: BROKEN}, 1, "error: process 2 of 2 was killed by SIGKILL, perhaps because memory ran out"),
        ([KILL, None], [INT], {}, 1, "error: process 1 of 2 was killed by SIGKILL"),
        ([None, -signal.SIGSEGV], [], {}, 1, "error: process 2 of 2 was killed by SIGSEGV, and the others"),
        ([1, 1], [], {0: BROKEN, 1: BROKEN}, 1, "Traceback: broken\nerror: process 2 of 2 has failed"),
        ([None, 7], [], {}, 1, "error: process 2 of 2 has failed"),
    ],
)
def test_what_is_said_of_processes_that_have_ended(tmp_path, capsys, codes, caught, reports, code, said):
    for rank, report in reports.items():
        write_json(tmp_path / f"{rank}.json", report | {"time": -rank})  # the second one was earlier
    assert launch._outcome(codes, [-number for number in caught], tmp_path) == code
    printed = capsys.readouterr().err
    assert printed.startswith(said)
    assert printed.count("\n") == bool(said) + ("Traceback" in said)
