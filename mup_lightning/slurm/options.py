"""What a cluster needs to know about a job. Imports no torch, so that errors and help appear at once."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from mup_lightning.errors import UserError
from mup_lightning.typed import Bound, NonNegativeInt, PositiveInt, Typed

TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")
WORD = re.compile(r"[^\s'\"\\%]+")
"""A word that needs no quoting in an #SBATCH line; SLURM replaces % in the names of log files."""

Time = Annotated[
    str, Bound("[days-]hours:minutes:seconds or minutes (in YAML between quotation marks)", TIME.fullmatch)
]
OneWord = Annotated[str, Bound("one word without quotes, backslashes and %", WORD.fullmatch)]
SbatchOption = Annotated[
    str, Bound("an option of sbatch, such as --constraint=h100", lambda text: text.startswith("-") and "\n" not in text)
]


@dataclass
class SlurmConfig(Typed, prefix="slurm."):
    """What a job requests from SLURM; null leaves a value to the cluster's own defaults.

    Attributes:
        gpus: GPUs per node, with one process each; 0: CPU processes, trainer.devices per node.
        cpus: cores per process.
        memory: memory per node, as in 200G.
        time: time limit, [days-]hours:minutes:seconds or minutes.
        partition: queue.
        account: account to charge.
        qos: quality of service.
        job: job name; null: the run's name.
        gres: the cluster's name for a GPU, as in gpu or gpu:h100.
        extra: further sbatch options, as in --constraint=h100.
        setup: shell lines before the training, as in module load cuda.
        signal_seconds: how long before the time limit the job begins to save; SLURM may be up to a minute early.
        max_requeues: how often the job may go back into the queue by itself.
    """

    gpus: NonNegativeInt | None = None
    cpus: PositiveInt | None = None
    memory: OneWord | None = None
    time: Time | None = None
    partition: OneWord | None = None
    account: OneWord | None = None
    qos: OneWord | None = None
    job: OneWord | None = None
    gres: OneWord = "gpu"
    extra: list[SbatchOption] = field(default_factory=list)
    setup: list[str] = field(default_factory=list)
    signal_seconds: PositiveInt = 120
    max_requeues: NonNegativeInt = 100

    def __post_init__(self) -> None:
        """Raise UserError for a time limit that leaves no time to train."""
        super().__post_init__()
        if self.time is not None and seconds(self.time) <= self.signal_seconds + 60:
            raise UserError(
                f"slurm.time is {self.time}, but the job starts to save {self.signal_seconds} s before its "
                f"end (slurm.signal_seconds), or up to a minute earlier; ask for more time or set fewer seconds"
            )


@dataclass
class SubmitSettings(Typed, prefix="--"):
    """Check everything as `train` would, write a job script, and submit it.

    Attributes:
        slurm: what the job requests from SLURM.
        dry: print the script and let SLURM check it; submit nothing.
        sweep: a sweep file instead of a configuration, run as an array job; see mup-lightning sweep.
        tasks: jobs in the array; each runs every N-th configuration.
        out: folder of the sweep's table; null: runs/sweeps/NAME.
        workers: processes per task; null: one per core or GPU.
        set: KEY=VALUE to set in the sweep; may be repeated.
    """

    slurm: SlurmConfig = field(default_factory=SlurmConfig)
    dry: bool = False
    sweep: Path | None = None
    tasks: PositiveInt | None = None
    out: Path | None = None
    workers: PositiveInt | None = None
    set: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Raise UserError for what is missing, or makes sense only with a sweep."""
        super().__post_init__()
        if self.sweep and not self.tasks:
            raise UserError("--sweep needs --tasks N, the number of jobs that share its configurations")
        if not self.sweep and (self.tasks or self.out or self.workers or self.set):
            raise UserError("--tasks, --out, --workers and --set belong to a sweep; name its file with --sweep FILE")


def seconds(time: str) -> int:
    """Seconds of a time of the type `Time`, as SLURM reads and prints it.

    It is minutes, minutes:seconds, hours:minutes:seconds, or days-hours[:minutes[:seconds]].
    """
    match = TIME.fullmatch(time)
    assert match is not None
    days, *parts = match.groups()
    first, second, third = (int(part or 0) for part in parts)
    if days is None and parts[2] is None:
        return first * 60 + second
    return ((int(days or 0) * 24 + first) * 60 + second) * 60 + third
