"""Measuring in fresh processes: allocator, imports and peak memory of one contender never touch another's."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
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
    cleaned = {key: value for key, value in os.environ.items() if not key.startswith(_ALLOCATOR)}
    cleaned |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryDirectory(prefix="mup-lightning-bench-") as folder:
        answer = Path(folder) / "answer.json"
        run = subprocess.run(
            [sys.executable, "-m", __name__, function, json.dumps(arguments), str(answer)],
            env=cleaned | (environment or {}),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        if run.returncode != 0 or not answer.exists():
            last = "\n".join(run.stderr.splitlines()[-15:])
            raise UserError(f"the benchmark process {function} ended with status {run.returncode}:\n{last}")
        return json.loads(answer.read_text())


def _main(function: str, arguments: str, answer: str) -> None:
    module, name = function.split(":")
    result = getattr(importlib.import_module(module), name)(**json.loads(arguments))
    Path(answer).write_text(json.dumps(result))


if __name__ == "__main__":
    _main(*sys.argv[1:])
