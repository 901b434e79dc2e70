"""Which of a run's processes this one is; and how several on one machine are started, watched and ended together.

Imports neither torch nor Lightning, which read launchers' variables while they are imported.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from mup_lightning.config.schema import Config, TrainerConfig
from mup_lightning.errors import UserError
from mup_lightning.files import read_json, write_json

LAUNCHERS = {
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    "srun": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),  # salloc and sbatch alone set no STEP
    "mpirun": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    "mpiexec": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
    "jsrun": ("JSM_NAMESPACE_RANK", "JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_LOCAL_RANK"),
}
"""Launcher -> its variables for the rank of a process, their number, and the rank on this machine."""

REPORTS = "MUP_LIGHTNING_REPORTS"
"""Set by `start_all`: the folder in which the processes say why they fail."""

INTERRUPTED = 131
"""Exit code of a process that Ctrl-C has ended at once; 130 is that of one that has saved and stopped."""

PATIENCE = 3.0
"""Seconds that the other processes have after one has failed: an error that all of them find, they all report."""


@dataclass(frozen=True)
class Process:
    """One of the processes that train a run together: the first of one, unless a launcher says otherwise."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    launcher: str = ""


def this_process(trainer: TrainerConfig) -> Process | None:
    """Which process of the run this one is; None: no launcher has started it, and it has to start several.

    Under strategy single every process trains a whole run of its own, whatever the environment says. Raises UserError
    where a launcher has started another number of processes, or a variable of one is no number.
    """
    started, wanted = _started(), trainer.devices * trainer.nodes
    if trainer.strategy == "single":
        return Process()
    for process in started:
        if process.world_size == wanted:
            return process
    for process in started:
        if process.world_size > 1:
            raise UserError(
                f"{process.launcher} has started {process.world_size} processes, but trainer.devices x trainer.nodes "
                f"is {trainer.devices} x {trainer.nodes} = {wanted}; make the two equal"
            )
    if trainer.nodes > 1:
        raise UserError(
            f"trainer.nodes is {trainer.nodes}, but no launcher has started this process, so nothing runs on the other "
            f"nodes; use mup-lightning submit, or start {wanted} processes by srun or torchrun"
        )
    return Process() if wanted == 1 else None


def note(trainer: TrainerConfig) -> str | None:
    """One line on variables of a launcher that this run does not heed, if they look like a mistake."""
    chosen = this_process(trainer)
    if chosen is not None and chosen.launcher:
        return None
    for launcher, names in LAUNCHERS.items():
        rank, size, local_rank = (int(os.environ.get(name, 0)) for name in names)
        if rank or size > 1 or local_rank:
            found = ", ".join(f"{name}={os.environ[name]}" for name in names if name in os.environ)
            does = "trains a whole run of its own" if chosen else f"starts {trainer.devices} processes of its own"
            return (
                f"note: {found} (as {launcher} sets) is not heeded: with trainer.strategy {trainer.strategy} this "
                f"process {does}"
            )
    return None


def _started() -> list[Process]:
    """What the launchers' variables say, of those launchers that have set all of theirs."""
    found = []
    for launcher, names in LAUNCHERS.items():
        values = {name: os.environ[name] for name in names if name in os.environ}
        for name, value in values.items():
            if not value.strip().isdecimal():
                raise UserError(
                    f"{name} is {value!r} in the environment; expected a whole number, as {launcher} sets, or none"
                )
        if len(values) == len(names):
            rank, world_size, local_rank = map(int, values.values())
            found.append(Process(rank, world_size, local_rank, launcher))
    return found


def announce(process: Process) -> None:
    """Say to Lightning and DeepSpeed, in torchrun's variables, which process this is, and where all of them meet."""
    said = _as_torchrun(process, *meeting_point(process))
    for name in (name for launcher, names in LAUNCHERS.items() if launcher != "srun" for name in names):
        os.environ.pop(name, None)  # DeepSpeed refuses torchrun's beside those of some launchers
    os.environ |= said


def _as_torchrun(process: Process, address: str, port: int) -> dict[str, str]:
    values = (process.rank, process.world_size, process.local_rank, address, port)
    return dict(zip((*LAUNCHERS["torchrun"], "MASTER_ADDR", "MASTER_PORT"), map(str, values), strict=True))


def meeting_point(process: Process) -> tuple[str, int]:
    """Address and port at which the processes of a run meet; raises UserError where the launcher does not say."""
    if process.world_size == 1:
        with _reserved_port() as free:
            return "127.0.0.1", free
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if process.launcher == "srun":
        from lightning.fabric.plugins.environments import SLURMEnvironment

        address = address or SLURMEnvironment.resolve_root_node_address(os.environ["SLURM_STEP_NODELIST"])
        port = port or str(15000 + int(os.environ["SLURM_JOB_ID"]) % 10000)
    if not address or not (port or "").isdecimal():
        raise UserError(
            f"{process.launcher} has started {process.world_size} processes, but MASTER_ADDR is {address} and "
            f"MASTER_PORT is {port}; expected the first machine's name, and a port that is free there"
        )
    return address, int(port or 0)


def start_all(config: Config) -> int:
    """Start the processes of a run on this machine, and wait for them; returns the exit code.

    They meet at a port that was free. When one fails, the others end within seconds, and one of them says why.
    """
    count, caught = config.trainer.devices, list[int]()
    running: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, frame: object) -> None:
        caught.append(number)
        for process in running:
            process.send_signal(number)

    heard = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup has it
        heard.append(signal.SIGHUP)
    previous = {number: signal.signal(number, pass_on) for number in heard}
    with tempfile.TemporaryDirectory(prefix="mup-lightning-") as folder, _reserved_port() as port:
        try:
            file = Path(folder) / "config.yaml"
            file.write_text(yaml.safe_dump(json.loads(json.dumps(asdict(config)))))
            command = [sys.executable, "-m", "mup_lightning.cli.main", "train", "-c", str(file)]
            strange = {name for names in LAUNCHERS.values() for name in names}  # what launchers have left
            kept = {k: v for k, v in os.environ.items() if k not in strange and not k.startswith("TORCHELASTIC_")}
            for rank in range(count):
                # A process group of their own: Ctrl-C reaches them once, through this process.
                environment = kept | _as_torchrun(Process(rank, count, rank), "127.0.0.1", port) | {REPORTS: folder}
                running.append(subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, process_group=0))
                if caught:
                    return _outcome([INTERRUPTED], caught, Path(folder))
            return _outcome(_wait(running, caught), caught, Path(folder))
        finally:
            for process in running:
                process.kill()
                process.wait()
            for number, handler in previous.items():
                signal.signal(number, handler)


@contextmanager
def _reserved_port() -> Iterator[int]:
    """A free port of this machine. It is bound here, so that no other program gets it; the first process may listen."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def _wait(running: Sequence[subprocess.Popen[bytes]], caught: Sequence[int]) -> list[int | None]:
    """Wait until all have ended, or one has failed and the others have had time to fail too; exit codes, None: none."""
    deadline = None
    while None in (codes := [process.poll() for process in running]):
        if deadline is None and (len(caught) > 1 or any(code not in (None, 0, 130) for code in codes)):
            deadline = time.monotonic() + PATIENCE
        if deadline is not None and time.monotonic() > deadline:
            break
        time.sleep(0.05)
    return codes


def _outcome(codes: Sequence[int | None], caught: Sequence[int], folder: Path) -> int:
    """Say in one line what has ended the run, if anything has; returns the exit code.

    `codes` are those of the processes, None of one that had not ended; `caught` the signals that were passed on to
    them; `folder` has their reports.
    """
    if not set(codes) - {0, 130}:
        return 130 if 130 in codes else 0
    # What ends one process at once leaves the others with broken connections, which are not causes.
    if INTERRUPTED in codes or not {-number for number in caught}.isdisjoint(codes):
        print("interrupted", file=sys.stderr)
        return 130
    reports = {int(file.stem): read_json(file, "a report") for file in sorted(folder.glob("*.json"))}
    killed = next((rank for rank, code in enumerate(codes) if code is not None and code < 0), None)
    if killed is not None:
        name = signal.Signals(-(codes[killed] or 0)).name
        what = f"process {killed + 1} of {len(codes)} was killed by {name}"
        what += ", perhaps because memory ran out" if name == "SIGKILL" else ""
    elif refusals := [report["text"] for report in reports.values() if report["refusal"]]:
        print(f"error: {refusals[0]}", file=sys.stderr)
        return 1
    else:
        failed = sorted(reports, key=lambda rank: reports[rank]["time"])
        if failed:
            print(reports[failed[0]]["text"], file=sys.stderr)
        number = [*failed, *(rank for rank, code in enumerate(codes) if code)][0]
        what = f"process {number + 1} of {len(codes)} has failed"
    advice = "the same command with resume=last continues from the newest checkpoint"
    print(f"error: {what}, and the others have been ended; {advice}", file=sys.stderr)
    return 1


@contextmanager
def reporting(process: Process) -> Iterator[None]:
    """Around the work of a process: where `start_all` has started it, it ends with its parent, and reports errors."""
    if REPORTS not in os.environ:
        yield
        return

    def end_with_parent() -> None:  # which writes nothing, and whose end of the pipe closes when it dies
        os.read(0, 1)
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        end(process, error)


def end(process: Process, error: BaseException) -> NoReturn:
    """End this process at once: what is usually torn down then may wait for processes that no longer answer."""
    if isinstance(error, KeyboardInterrupt):
        os._exit(INTERRUPTED)
    refusal = isinstance(error, UserError)
    text = str(error) if refusal else "".join(traceback.format_exception(error))
    if folder := os.environ.get(REPORTS):
        report: dict[str, Any] = {"time": time.time(), "refusal": refusal, "text": text}
        write_json(Path(folder) / f"{process.rank}.json", report)
    else:
        print(f"error: {text}" if refusal else text, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
