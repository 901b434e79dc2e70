"""What is refused before SLURM is asked, and what the scripts say; needs no cluster."""

import re
import subprocess

import pytest
import yaml

from mup_lightning import signals
from mup_lightning.cli.main import main
from mup_lightning.errors import UserError
from mup_lightning.slurm import submit
from mup_lightning.slurm.options import seconds
from mup_lightning.slurm.submit import requeue
from tests.slurm.conftest import Runs
from tests.studies.sweeps import tiny_sweep, write


@pytest.fixture
def offline(corpus, tmp_path, monkeypatch):
    """A machine without SLURM."""
    monkeypatch.setattr(submit, "available", lambda: False)
    return Runs(None, corpus, tmp_path / "runs")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slurm.gpus": "null"}, r"slurm\.gpus is not set.*--slurm\.gpus 8"),
        ({"slurm.time": "2"}, r"slurm\.time is 2, but the job starts to save 120 s before its end"),
        ({"slurm.extra": "[exclusive]"}, r"slurm\.extra is \[exclusive\]; expected a list, each option of sbatch"),
        ({"slurm.gpus": 2, "trainer.devices": 4}, r"slurm\.gpus is 2, but trainer\.devices is 4"),
        ({"slurm.gpus": 2, "trainer.accelerator": "cpu"}, r"slurm\.gpus is 2, but trainer\.accelerator is cpu"),
        ({"data.path": "nowhere"}, r"no prepared corpus at nowhere"),
        ({"run.name": "with blank"}, r"run\.name is 'with blank'; a job needs a name without blanks"),
        ({"run.resume": "last"}, r"there is no complete checkpoint in"),
        ({"run.resume": "runs/x/checkpoints/step_00000001"}, r"a job continues its own run only"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(offline, refused, changes, message):
    assert re.search(message, refused(offline.command("new", **changes)))
    assert not offline.root.exists()


def script(argv, capsys):
    """The lines of the script that a dry run prints."""
    assert main([*argv, "--dry"]) == 0
    printed = capsys.readouterr()
    assert "not checked by SLURM" in printed.err
    assert subprocess.run(["bash", "-n"], input=printed.out, text=True, check=False).returncode == 0
    return printed.out.splitlines()


def test_a_sweep_needs_no_gpus(offline, corpus, tmp_path, capsys):
    file = write(tmp_path / "file", tiny_sweep(corpus))
    argv = ["submit", "-c", "recipes/slurm/default.yaml", "--sweep", str(file), "--tasks", "2"]
    argv += ["--out", str(tmp_path / "out")]
    assert "--gres" not in "\n".join(script(argv, capsys))
    assert "#SBATCH --gres=gpu:1" in script([*argv, "--slurm.gpus", "1"], capsys)


def test_the_script_of_a_training(offline, capsys):
    lines = script(offline.command("new", **{"slurm.setup": "['module load cuda']", "slurm.cpus": 3}), capsys)
    for line in (
        "#SBATCH --nodes=2",
        "#SBATCH --ntasks-per-node=1",
        "#SBATCH --cpus-per-task=3",
        f"#SBATCH --output={offline.root}/new/slurm/%j.log",
        "#SBATCH --open-mode=append",
        "#SBATCH --signal=USR1@120",
        "#SBATCH --requeue",
        "module load cuda",
    ):
        assert line in lines
    assert "--gres" not in "\n".join(lines)
    assert any(line.startswith("srun --kill-on-bad-exit=1 --cpus-per-task=3 ") for line in lines)
    assert not offline.root.exists()


def test_submitting_where_there_is_no_slurm_says_where_to_go(offline, refused, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert "sbatch cannot be run" in refused(offline.command("new"))
    assert not offline.root.exists()


def test_options_of_a_cluster_compose_like_other_recipes(offline, capsys, refused, tmp_path):
    site = tmp_path / "site.yaml"
    options = {"partition": "short", "time": "12:00:00", "gres": "gpu:h100", "gpus": 2}
    site.write_text(yaml.safe_dump({"slurm": options}))
    argv = offline.command("new", **{"slurm.partition": "long", "slurm.gpus": 2, "data.batch_size": 16})
    lines = script([argv[0], "-c", "recipes/slurm/default.yaml", "-c", str(site), *argv[1:]], capsys)
    for line in ("--partition=long", "--time=12:00:00", "--gres=gpu:h100:2", "--ntasks-per-node=2"):
        assert f"#SBATCH {line}" in lines
    site.write_text("slurm: {time: 12:00:00}\n")  # 43200 in YAML 1.1
    assert "slurm.time" in refused([argv[0], "-c", str(site), *argv[1:]])


@pytest.mark.parametrize(
    ("time", "expected"),
    [("90", 5400), ("90:30", 5430), ("1:00:05", 3605), ("2-0", 172800), ("1-2:3", 93780), ("1-2:3:4", 93784)],
)
def test_times_are_read_as_sbatch_reads_them(time, expected):
    assert seconds(time) == expected


def test_bad_sweeps_are_refused(offline, refused, tmp_path, corpus):
    file = write(tmp_path / "file", tiny_sweep(corpus))
    argv = ["submit", "--sweep", str(file), "--tasks", "2", "--out", str(tmp_path / "out")]
    assert "--sweep takes no keys of a configuration" in refused([*argv, "--model.width", "16"])
    assert "recipe.lrr" in refused([*argv, "--set", "recipe.lrr=3"])
    assert not (tmp_path / "out").exists()


def test_a_damaged_record_of_the_last_job_is_named(offline, refused):
    (offline.root / "new" / "slurm").mkdir(parents=True)
    (offline.root / "new" / "slurm" / "job.json").write_text("{")
    assert re.search(r"job\.json is damaged: .* the run's last job", refused(offline.command("new")))


RECORD = "JobId=7 {array}JobName=a\n   JobState={state} Restarts={restarts}\n   RunTime=00:01:00 TimeLimit=1-00:00:00"
OTHER = RECORD.replace("=7 ", "=8 ").format(array="ArrayJobId=7 ArrayTaskId=1 ", state="CANCELLED", restarts=99)


@pytest.mark.parametrize(
    ("record", "asked", "message"),
    [
        ({}, "7", ""),
        ({"array": "ArrayJobId=7 ArrayTaskId=3 "}, "7_3", ""),  # the task that has the number of the whole array
        ({"restarts": 8}, "7", ""),
        ({"restarts": 9}, "", "it has been requeued 9 times, which is the limit"),
        ({"state": "CANCELLED"}, "", ""),
        ({"state": "COMPLETING"}, "", ""),
    ],
)
def test_a_job_requeues_itself_alone(tmp_path, monkeypatch, record, asked, message):
    shown = RECORD.format(**{"array": "", "state": "RUNNING", "restarts": 0} | record)
    (tmp_path / "shown").write_text(f"{OTHER}\n\n{shown}\n\n")
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\n[ $1 = show ] && exec cat {tmp_path}/shown\necho "$2" > {tmp_path}/asked\n')
    scontrol.chmod(0o755)
    for name, value in {"PATH": f"{tmp_path}:/bin:/usr/bin", "SLURM_JOB_ID": "7", signals.VARIABLE: "9"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "5")  # left by a job in which this one was submitted
    if message:
        with pytest.raises(UserError, match=f"step 2 is saved, but job 7 cannot go back into the queue: {message}"):
            requeue(step=2, first_step=0)
    else:
        assert requeue(step=2, first_step=0) == bool(asked)
    assert not asked or (tmp_path / "asked").read_text() == f"{asked}\n"


def test_a_variable_of_a_job_outside_of_one_is_one_line(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setenv(signals.VARIABLE, "9")
    with pytest.raises(UserError, match=f"step 2 is saved, but {signals.VARIABLE} is set outside of a SLURM job"):
        requeue(step=2, first_step=0)
