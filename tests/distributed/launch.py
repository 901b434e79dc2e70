"""Processes that train together, as torchrun would start them; they wait for runs, so that start-up is paid once."""

import multiprocessing
import os
import socket
from functools import partialmethod
from multiprocessing.connection import wait
from pathlib import Path

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["mup_lightning.training.train", "deepspeed"])  # imported once, for all of them


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
        folder: for their logs.
    """

    def __init__(self, count, folder):
        os.environ["DS_ACCELERATOR"] = "cpu"  # before DeepSpeed is imported
        self.logs, self.pipes, self.processes = [folder / f"{rank}.log" for rank in range(count)], [], []
        for log, variables in zip(self.logs, as_torchrun(count), strict=True):
            ours, theirs = FORKS.Pipe()
            self.pipes.append(ours)
            self.processes.append(FORKS.Process(target=work, args=(theirs, log, variables)))
            self.processes[-1].start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.join()

    def train(self, configs, others=None, timeout=600):
        """Let all processes train these one after the other, or all but the first these `others`.

        Returns:
            Run's name -> the folder of its last checkpoint, or the error in words; as the first process found them.
        """
        for rank, pipe in enumerate(self.pipes):
            pipe.send((rank and others) or configs)
        dead = [process.sentinel for process in self.processes]
        for pipe in self.pipes:
            assert pipe in wait([pipe, *dead], timeout), "\n".join(log.read_text()[-3000:] for log in self.logs)
        answers = [pipe.recv() for pipe in self.pipes]
        return answers[0]


def work(pipe, log, variables):
    """One of the processes."""
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ |= variables
    import torch

    from mup_lightning.errors import UserError
    from mup_lightning.training.train import train

    torch.set_num_threads(1)
    # What depends on the strategy is in it (graphs, hooks, the order of gradients), and no minutes of a C++ compiler.
    torch.nn.Module.compile = partialmethod(torch.nn.Module.compile, backend="aot_eager")
    while True:
        found = {}
        for config in pipe.recv():
            try:
                checkpoint = train(config, progress=False).checkpoint
                found[config.run.name] = checkpoint and Path(checkpoint)  # only the first process knows it
            except UserError as error:
                found[config.run.name] = str(error)
        pipe.send(found)
