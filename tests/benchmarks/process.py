"""Measuring in fresh processes: allocator, imports and peak memory of one contender never touch another's."""

from __future__ import annotations

import importlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mup_lightning.errors import UserError

_ALLOCATOR = ("THP_MEM_ALLOC_ENABLE", "MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
"""Variables of the caller that would change a contender's allocator, by their beginnings."""


def measure(function: str, arguments: dict[str, Any], threads: int, environment: dict[str, str] | None = None) -> Any:
    """Call a function in a fresh Python, and return what it returns.

    Args:
        function: "module:name"; it takes the arguments by name and returns plain JSON values.
        arguments: plain JSON values.
        threads: CPU threads of torch.
        environment: variables that the process shall have besides.

    Raises:
        UserError: the process failed; with its last words.
    """
    with tempfile.TemporaryDirectory(prefix="mup-lightning-bench-") as folder:
        return _answer(function, _start(function, arguments, Path(folder), threads, environment or {}), Path(folder))


def measure_together(
    function: str,
    arguments: dict[str, Any],
    processes: int,
    threads: int,
    environment: dict[str, str] | None = None,
) -> list[Any]:
    """Call a function in several Pythons at once, which find each other as torchrun's would (RANK, MASTER_ADDR, ...).

    Args:
        function: as in `measure`; so are the others.
        arguments: the same for all.
        processes: how many.
        threads: of each.
        environment: of each.

    Returns:
        What each returned, in order of their ranks.

    Raises:
        UserError: one failed; with its last words. The others are ended.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes), "GROUP_RANK": "0"}
    common |= {"LOCAL_WORLD_SIZE": str(processes), "TORCHELASTIC_RUN_ID": "bench", **(environment or {})}
    with tempfile.TemporaryDirectory(prefix="mup-lightning-bench-") as folder:
        folders = [Path(folder) / str(rank) for rank in range(processes)]
        running = []
        try:
            for rank, own in enumerate(folders):
                own.mkdir()
                variables = common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                running.append(_start(function, arguments, own, threads, variables))
            while any(run.poll() is None for run in running) and not any(run.poll() for run in running):
                time.sleep(0.1)
        finally:
            # Without one of them the others would wait for minutes.
            for run in running:
                if run.poll() is None:
                    run.kill()
        failed = sorted(range(processes), key=lambda rank: running[rank].wait() <= 0)  # who was killed says nothing
        answers = {rank: _answer(function, running[rank], folders[rank]) for rank in failed}
        return [answers[rank] for rank in range(processes)]


def _start(
    function: str, arguments: dict[str, Any], folder: Path, threads: int, environment: dict[str, str]
) -> subprocess.Popen[bytes]:
    cleaned = {key: value for key, value in os.environ.items() if not key.startswith(_ALLOCATOR)}
    cleaned |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""}
    with (folder / "stderr").open("wb") as errors:
        return subprocess.Popen(
            [sys.executable, "-m", __name__, function, json.dumps(arguments), str(folder / "answer.json")],
            env=cleaned | environment,
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )


def _answer(function: str, run: subprocess.Popen[bytes], folder: Path) -> Any:
    status, answer = run.wait(), folder / "answer.json"
    if status != 0 or not answer.exists():
        last = "\n".join((folder / "stderr").read_text(errors="replace").splitlines()[-15:])
        raise UserError(f"the benchmark process {function} ended with status {status}:\n{last}")
    return json.loads(answer.read_text())


def _main(function: str, arguments: str, answer: str) -> None:
    module, name = function.split(":")
    result = getattr(importlib.import_module(module), name)(**json.loads(arguments))
    Path(answer).write_text(json.dumps(result))


if __name__ == "__main__":
    _main(*sys.argv[1:])
