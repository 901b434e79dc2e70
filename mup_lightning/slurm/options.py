"""What a cluster wants to know of a job. Imports no torch, so that the command line refuses and helps at once."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from mup_lightning.errors import UserError

TIME = re.compile(r"(?:(?P<days>\d+)-(?P<of_day>\d+(?::\d+){0,2})|(?P<clock>\d+(?::\d+){0,2}))")
WORD = re.compile(r"[^\s'\"\\%]+")
"""What may stand in an #SBATCH line without any quoting; SLURM replaces % in the names of log files."""


@dataclass
class SlurmConfig:
    """What is asked of SLURM; whatever is null is left to the cluster's own defaults.

    Attributes:
        gpus: of each node, with one process each; 0: CPU processes, as many a node as trainer.devices says.
        cpus: cores of each process.
        memory: of each node, as in 200G.
        time: limit of the job's life, [days-]hours:minutes:seconds or minutes.
        partition: queue.
        account: that pays.
        qos: quality of service.
        job: its name; null: the run's name.
        gres: the cluster's name of a GPU, as in gpu or gpu:h100.
        extra: more options of sbatch, as in --constraint=h100.
        setup: shell lines before the training, as in module load cuda.
        signal_seconds: how long before the time limit the job begins to save; SLURM may be up to a minute early.
        max_requeues: how often the job may go back into the queue by itself.
    """

    gpus: int | None = None
    cpus: int | None = None
    memory: str | None = None
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    job: str | None = None
    gres: str = "gpu"
    extra: list[str] = field(default_factory=list)
    setup: list[str] = field(default_factory=list)
    signal_seconds: int = 120
    max_requeues: int = 100

    def __post_init__(self) -> None:
        """Raise UserError for what no cluster takes."""
        for key, least in (("gpus", 0), ("cpus", 1), ("signal_seconds", 1), ("max_requeues", 0)):
            value = getattr(self, key)
            if value is not None and value < least:
                raise UserError(f"slurm.{key} is {value}; expected a whole number of at least {least}")
        for key in ("memory", "partition", "account", "qos", "job", "gres"):
            value = getattr(self, key)
            if value is not None and not WORD.fullmatch(value):
                raise UserError(f"slurm.{key} is {value!r}; expected one word without quotes, backslashes and %")
        for option in self.extra:
            if not option.startswith("-") or "\n" in option:
                raise UserError(f"slurm.extra has {option!r}; expected options of sbatch, such as --constraint=h100")
        if self.job in ("bash", "interactive"):
            raise UserError(f"slurm.job is {self.job}, by which Lightning knows interactive jobs; choose another name")
        limit = None if self.time is None else seconds(self.time)
        if limit is not None and limit <= self.signal_seconds + 60:
            raise UserError(
                f"slurm.time is {self.time}, but the job is told to save {self.signal_seconds} s before its end "
                f"(slurm.signal_seconds), and up to a minute earlier; ask for more time or set fewer seconds"
            )

    def checked_gpus(self) -> int:
        """GPUs of each node.

        Raises:
            UserError: nobody has said how many.
        """
        if self.gpus is None:
            raise UserError(
                "slurm.gpus is not set: say how many GPUs of each node to use (--slurm.gpus 8, or GPUS=8); "
                "0 trains on CPUs, with trainer.devices (DEVICES=N) processes on each node"
            )
        return self.gpus


def seconds(time: str) -> int:
    """Seconds of a time as sbatch takes it: minutes, min:s, h:min:s, days-h, days-h:min or days-h:min:s.

    Raises:
        UserError: it is none of these.
    """
    match = TIME.fullmatch(time)
    if match is None:
        raise UserError(
            f"slurm.time is {time!r}; expected hours:minutes:seconds, days-hours:minutes:seconds or minutes "
            f"(in YAML between quotation marks, which 12:00:00 needs)"
        )
    parts = [int(part) for part in (match["of_day"] or match["clock"]).split(":")]
    if match["days"] is not None:
        hours, minutes, rest = [*parts, 0, 0][:3]
        return ((int(match["days"]) * 24 + hours) * 60 + minutes) * 60 + rest
    hours, minutes, rest = {1: [0, *parts, 0], 2: [0, *parts], 3: parts}[len(parts)]
    return (hours * 60 + minutes) * 60 + rest
