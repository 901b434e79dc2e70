"""Processes that train together, as torchrun would start them; they wait for runs, so that start-up is paid once."""

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from functools import partialmethod
from pathlib import Path

from mup_lightning.files import read_json, write_json


def as_torchrun(count):
    """The variables by which torchrun's processes on this machine find each other; there are none for one process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    common |= {"GROUP_RANK": 0, "TORCHELASTIC_RUN_ID": "tests"}
    every = [common | {"RANK": rank, "LOCAL_RANK": rank} if count > 1 else {} for rank in range(count)]
    return [{name: str(value) for name, value in variables.items()} for variables in every]


class Together:
    """Some processes; a context that ends them.

    Args:
        count: of them.
        folder: for their logs and answers.
    """

    def __init__(self, count, folder):
        self.folder, self.batches = folder, 0
        folder.mkdir(parents=True, exist_ok=True)
        self.processes = []
        for rank, variables in enumerate(as_torchrun(count)):
            environment = os.environ | variables | {"OMP_NUM_THREADS": "1"}
            with self.log(rank).open("w") as log:
                command = [sys.executable, "-m", __name__, str(folder / str(rank))]
                pipes = {"stdin": subprocess.PIPE, "stdout": log, "stderr": subprocess.STDOUT}
                self.processes.append(subprocess.Popen(command, env=environment, text=True, **pipes))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.wait()

    def log(self, rank):
        return self.folder / f"{rank}.log"

    def start(self, configs, others=None):
        """Let all processes train these one after the other, or all but the first these `others`."""
        self.batches += 1
        for rank, process in enumerate(self.processes):
            process.stdin.write(json.dumps([asdict(c) for c in (rank and others) or configs]) + "\n")
            process.stdin.flush()

    def train(self, configs, others=None, timeout=600):
        """Train them; run's name -> the folder of its last checkpoint, or the error in words."""
        self.start(configs, others)
        answers = [self.folder / f"{rank}-{self.batches}.json" for rank in range(len(self.processes))]
        deadline = time.monotonic() + timeout
        while not all(answer.exists() for answer in answers):
            alive = all(process.poll() is None for process in self.processes) and time.monotonic() < deadline
            assert alive, "\n".join(self.log(rank).read_text()[-3000:] for rank in range(len(self.processes)))
            time.sleep(0.05)
        return {name: error or Path(folder) for name, folder, error in read_json(answers[0], "answers")}


def work(answers):
    """One of the processes: each line that it reads is a list of configurations."""
    from mup_lightning.training import tune_allocator

    tune_allocator()
    import torch

    from mup_lightning.config.schema import Config
    from mup_lightning.errors import UserError
    from mup_lightning.training.train import train

    torch.set_num_threads(1)
    # What depends on the strategy is in it (graphs, hooks, the order of gradients), and no minutes of a C++ compiler.
    torch.nn.Module.compile = partialmethod(torch.nn.Module.compile, backend="aot_eager")
    for number, line in enumerate(sys.stdin, 1):
        found = []
        for config in map(Config.from_plain, json.loads(line)):
            try:
                found.append((config.run.name, train(config, progress=False).checkpoint, ""))
            except UserError as error:
                found.append((config.run.name, "", str(error)))
        write_json(Path(f"{answers}-{number}.json"), found)


if __name__ == "__main__":
    work(sys.argv[1])
