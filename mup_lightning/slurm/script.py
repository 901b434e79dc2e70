"""The job scripts: short, and readable by whoever finds one in a run's folder."""

import shlex
from pathlib import Path

from mup_lightning.signals import VARIABLE
from mup_lightning.slurm.options import SlurmConfig


def training(slurm: SlurmConfig, *, name: str, nodes: int, processes: int, folder: Path, program: Path) -> str:
    """The script of a training job.

    Args:
        slurm: what the job requests from SLURM.
        name: job name.
        nodes: machines.
        processes: processes per node.
        folder: folder for logs; it holds config.yaml, the configuration to train.
        program: the command mup-lightning.
    """
    head = _head(
        slurm,
        [f"--job-name={name}", f"--nodes={nodes}", f"--ntasks-per-node={processes}"],
        log=folder / "%j.log",
        signal="USR1",
    )
    command = shlex.join([str(program), "train", "-c", str(folder / "config.yaml")])
    return f"""{head}
export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n1)
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
export OMP_NUM_THREADS=${{SLURM_CPUS_PER_TASK:-1}}

# On USR1 (the time limit is near) or TERM (preempted): finish the step, save, requeue, at most this often.
export {VARIABLE}={slurm.max_requeues}

# Both are ignored until the training has its own handlers; one process that dies ends them all.
srun --kill-on-bad-exit=1{_cpus(slurm)} bash -c 'trap "" USR1 TERM; exec "$@"' task \\
  {command}
"""


def sweep(slurm: SlurmConfig, *, name: str, tasks: int, command: list[str], folder: Path) -> str:
    """The script of an array job whose tasks share the configurations of a sweep.

    Args:
        slurm: what each task requests from SLURM.
        name: job name.
        tasks: jobs that share the sweep.
        command: mup-lightning sweep FILE and its options, without --shard.
        folder: folder for logs.
    """
    head = _head(
        slurm,
        [f"--job-name={name}", f"--array=1-{tasks}", "--nodes=1", "--ntasks-per-node=1"],
        log=folder / "%A_%a.log",
        signal="TERM",
    )
    return f"""{head}
status=0
srun{_cpus(slurm)} {shlex.join(command)} --shard "$SLURM_ARRAY_TASK_ID/{tasks}" || status=$?

# 130: stopped by TERM (the time limit is near, or preempted). Requeue: what is finished is not run again.
if [ "$status" = 130 ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {slurm.max_requeues} ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
"""


def _head(slurm: SlurmConfig, job: list[str], log: Path, signal: str) -> str:
    """The #SBATCH lines and the site's own shell lines; `signal` is sent before the time limit."""
    asked = {
        "--gres": f"{slurm.gres}:{slurm.gpus}" if slurm.gpus else None,
        "--cpus-per-task": slurm.cpus,
        "--mem": slurm.memory,
        "--time": slurm.time,
        "--partition": slurm.partition,
        "--account": slurm.account,
        "--qos": slurm.qos,
    }
    options = [
        *job,
        *(f"{option}={value}" for option, value in asked.items() if value is not None),
        *slurm.extra,
        f"--chdir={Path.cwd()}",
        f"--output={log}",
        "--open-mode=append",
        f"--signal={signal}@{slurm.signal_seconds}",
        "--requeue",
    ]
    lines = ["#!/bin/bash", *(f"#SBATCH {option}" for option in options), ""]
    return "\n".join(lines + ([*slurm.setup, ""] if slurm.setup else []))


def _cpus(slurm: SlurmConfig) -> str:
    """Since SLURM 22.05, srun does not take this option over from sbatch."""
    return f" --cpus-per-task={slurm.cpus}" if slurm.cpus else ""
