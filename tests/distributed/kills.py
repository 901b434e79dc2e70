"""Kill every kind of long work again and again, and check that the same command ends in the same bytes.

    python -m tests.distributed.kills --kills 200

Work is killed (SIGKILL) at a random moment, or just before one of the operations by which it changes the file system:
so each rename, removal and opening of a checkpoint that is saved or set aside has its turn. After up to four kills the
same command is left alone; what it leaves must then be what it leaves when it is never killed.

Processes are forked from this one, which has imported everything and computed nothing.
"""

import argparse
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tests.distributed.launch import as_torchrun
from tests.distributed.work import Work, all_work

FORKS = multiprocessing.get_context("fork")
PATIENCE = 3
"""Seconds after which the processes that a dead one has left are killed, as srun and torchrun do it at once."""


def difference(found: Any, wanted: Any) -> str:
    """Where two values differ, in words; empty where they do not."""
    if isinstance(wanted, dict) and isinstance(found, dict) and found.keys() == wanted.keys():
        return "; ".join(key for key in wanted if found[key] != wanted[key])
    if isinstance(wanted, tuple):
        return "; ".join(filter(None, map(difference, found, wanted)))
    return "" if found == wanted else f"{found!r:.1000} instead of {wanted!r:.1000}"


def changes_files(event: str, arguments: tuple[Any, ...]) -> bool:
    """Whether an audit event of Python announces an operation that changes the file system."""
    if event == "open":
        return isinstance(arguments[2], int) and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    return event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")


def live(work: Work, folder: Path, rank: int = -1, operation: int = 0, seconds: float = 0.0) -> tuple[bool, float, int]:
    """Start the processes, and kill that of a rank before its given operation, or after some seconds.

    Returns:
        Whether it was killed; the seconds that the others lived on, or all of them took; its operations, if it lived.
    """
    begin = time.monotonic()
    processes = [
        FORKS.Process(target=one, args=(work, folder, number, variables, operation if number == rank else 0))
        for number, variables in enumerate(as_torchrun(work.processes))
    ]
    for process in processes:
        process.start()
    if seconds:
        processes[rank].join(seconds)
        processes[rank].kill()
    if rank >= 0:
        processes[rank].join(900)
    if dead := rank >= 0 and processes[rank].exitcode == -signal.SIGKILL:
        begin = time.monotonic()
    end = time.monotonic() + (PATIENCE if dead else 900)
    for process in processes:
        process.join(end - time.monotonic())
        process.kill()
        process.join()
    took = time.monotonic() - begin
    if dead:
        return True, took, 0
    codes = [process.exitcode for process in processes]
    logs = "\n".join(log.read_text()[-3000:] for log in folder.glob("log_*"))
    assert not any(codes), f"{folder}: {codes}\n{logs}"
    return False, took, int((folder / f"operations_{max(rank, 0)}").read_text())


def one(work: Work, folder: Path, rank: int, variables: dict[str, str], fatal: int) -> None:
    """A forked process: works, and counts what it does to files."""
    log = os.open(folder / f"log_{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if work.processes > 1:
        from lightning.pytorch.utilities.rank_zero import rank_zero_only

        rank_zero_only.rank = rank  # as when it is imported in a process of this rank
        os.environ |= variables
    done = 0

    def counted(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal done
        if changes_files(event, arguments):
            done += 1
            if done == fatal:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(counted)
    code = work.do(folder)
    (folder / f"operations_{rank}").write_text(str(done))
    sys.exit(code)


def kill(root: Path, chance: random.Random, name: str, work: Work, quota: int, bar: tqdm) -> Counter[str]:
    """Kill work this often, in several folders, and print what was lost.

    Counts the kills that "recovered": the same command ended in the same result; those "at operations", just before a
    change of files; and those after which the other process was "waiting" for the dead one.
    """

    def folder(which: str) -> Path:
        made = root / f"{name}-{which}"
        made.mkdir()
        work.before(made)
        return made

    straight, counts = folder("straight"), Counter[str]()
    _, took, operations = live(work, straight)
    wanted, killed, number = work.left(straight), 0, 0
    while killed < quota:
        number += 1
        own = folder(str(number))
        deaths, over = 0, False
        for _ in range(min(chance.randint(1, 4), quota - killed)):
            rank = chance.choice([0, 0, 1]) if work.processes > 1 else 0
            moment = {"operation": chance.randint(1, max(1, operations // (1 + deaths)))}
            if rank or chance.random() < 0.4:
                moment = {"seconds": chance.uniform(0.02, took)}
            dead, lived_on, _ = live(work, own, rank, **moment)
            if over := not dead or work.over(own):
                break
            deaths += 1
            counts.update({"at operations": "operation" in moment, "waiting": lived_on > PATIENCE})
        killed += deaths
        bar.update(deaths)
        try:
            if not over:
                live(work, own)
            assert not (differing := difference(work.left(own), wanted)), f"another result: {differing}"
            counts["recovered"] += deaths
            shutil.rmtree(own)
        except (AssertionError, OSError) as error:
            tqdm.write(f"{name}: {str(error)[:3000]}")
    print(f"{name:<22} {counts['recovered']:>3} of {quota:>3} recovered", flush=True)
    return counts


def shares(kills: int, works: dict[str, Work]) -> Counter[str]:
    """How often each work is killed: training three times as often as others."""
    names = [*works, *[name for name in works if name.startswith("train")] * 2]
    return Counter(names[number % len(names)] for number in range(kills))


def main(kills: int, seed: int, only: str) -> bool:
    """Kill, print what came of it, and return whether all recovered."""
    os.environ |= {"DS_ACCELERATOR": "cpu", "TORCHDYNAMO_DISABLE": "1"}
    import torch

    torch.set_num_threads(1)
    import mup_lightning.studies.anneal.anneal
    import mup_lightning.studies.tune.tune
    import mup_lightning.training.deepspeed
    import mup_lightning.training.finished  # noqa: F401

    with tempfile.TemporaryDirectory(prefix="kills-") as scratch:
        root = Path(scratch)
        works = all_work(root)
        (root / "finished").mkdir()
        live(works.pop("a run to continue"), root / "finished")
        quotas = shares(kills, {name: work for name, work in works.items() if name.startswith(only)})
        chance, done = random.Random(seed), Counter[str]()
        with tqdm(total=kills, desc="kills", disable=None) as bar:
            for name, quota in quotas.items():
                done += kill(root, chance, name, works[name], quota, bar)
    print(
        f"{done['recovered']} of {kills} kills recovered, {done['at operations']} of them just before a change of "
        f"files; {done['waiting']} times the other process waited for the dead one and was killed too"
    )
    return done["recovered"] == kills


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="work whose name begins like this")
    arguments = parser.parse_args()
    raise SystemExit(not main(arguments.kills, arguments.seed, arguments.only))
