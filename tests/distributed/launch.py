"""Starts processes that train together, as torchrun would."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict


def start(jobs, processes, folder):
    """Start the processes; jobs: label -> Config."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "jobs.json").write_text(json.dumps({label: asdict(config) for label, config in jobs.items()}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes), "GROUP_RANK": "0"}
    common |= {"LOCAL_WORLD_SIZE": str(processes), "TORCHELASTIC_RUN_ID": "tests", "OMP_NUM_THREADS": "1"}
    running = []
    for rank in range(processes):
        environment = os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        with (folder / f"rank_{rank}.log").open("a") as log:
            command = [sys.executable, "-m", "tests.distributed.worker", str(folder)]
            running.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
    return running


def train_together(jobs, processes, folder, timeout=1200):
    """Train every job with all processes; label -> {"checkpoint"} or {"error"}."""
    running = start(jobs, processes, folder)
    try:
        codes = [process.wait(timeout) for process in running]
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
    logs = "\n".join((folder / f"rank_{rank}.log").read_text()[-3000:] for rank in range(processes))
    assert codes == [0] * processes, logs
    return {label: json.loads((folder / f"{label}.json").read_text()) for label in jobs}
