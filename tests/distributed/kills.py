"""Kill one of several training processes at random moments, again and again, and check that nothing is ever lost.

    python -m tests.distributed.kills --kills 50

Every restart resumes from the newest complete checkpoint. The run saves after every step, so that many of the kills
fall into the saving. In the end the weights must equal those of an undisturbed run to the bit.
"""

import argparse
import random
import signal
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from mup_lightning.config.schema import Config
from mup_lightning.training import checkpoint as checkpoints
from mup_lightning.training.tensors import Shards
from tests.conftest import write_corpus
from tests.distributed.launch import start, train_together

STRATEGIES = ("zero1", "zero3", "ddp", "zero2", "zero0")


def config(corpus, root, strategy, steps, name):
    return Config.from_plain(
        {
            "model": {"width": 32, "depth": 2, "heads": 2, "context": 16, "dropout": 0.1},
            "recipe": {"base_width": 16, "base_depth": 1},
            "data": {"path": str(corpus), "tokenizer": "bytes", "batch_size": 8, "micro_batch": 2},
            "trainer": {
                "max_steps": steps,
                "checkpoint_every": 1,
                "validate_every": 0,
                "accelerator": "cpu",
                "strategy": strategy,
                "devices": 2,
            },
            "run": {"root": str(root), "name": name, "resume": "auto"},
        }
    )


def equal(first, second):
    """Whether two checkpoints hold the same numbers."""
    a, b = Shards(first), Shards(second)
    return a.quantities == b.quantities and all(
        torch.equal(a.read(quantity, name), b.read(quantity, name))
        for name, quantities in a.quantities.items()
        for quantity in quantities
    )


def life(job, folder, chance):
    """Start the processes, and kill one of them after a while.

    Returns:
        Whether the run was still going on, and the seconds until the other process had ended too.
    """
    checkpoint_folder = Path(job.run.root) / job.run.name / "checkpoints"
    before = {path.name for path in checkpoints.complete(checkpoint_folder)}
    running = start({"run": job}, 2, folder)
    while {path.name for path in checkpoints.complete(checkpoint_folder)} == before:  # a new step has been saved
        if any(process.poll() is not None for process in running):
            break
        time.sleep(0.005)
    time.sleep(chance.uniform(0.0, 0.6))
    victim = chance.randrange(2)
    killed = running[victim].poll() is None
    running[victim].send_signal(signal.SIGKILL)
    begin = time.monotonic()
    while running[1 - victim].poll() is None and time.monotonic() - begin < 30:
        time.sleep(0.01)
    alone = time.monotonic() - begin
    for process in running:
        process.kill()
        process.wait()
    return killed, alone


def main(kills, steps, seed):
    chance = random.Random(seed)
    recovered, longest, in_saving = 0, 0.0, 0
    with tempfile.TemporaryDirectory(prefix="kills-") as scratch:
        root = Path(scratch)
        corpus = write_corpus(root / "corpus")
        straight = {s: config(corpus, root / "runs", s, steps, f"straight-{s}") for s in STRATEGIES}
        done = train_together(straight, 2, root / "straight")
        for number in tqdm(range(kills), desc="kills", disable=None):
            strategy = STRATEGIES[number % len(STRATEGIES)]
            name = f"run-{number // (len(STRATEGIES) * 2)}-{strategy}"  # two kills a run
            job = config(corpus, root / "runs", strategy, steps, name)
            killed, alone = life(job, root / f"life-{number}", chance)
            longest = max(longest, alone)
            folder = root / "runs" / name / "checkpoints"
            in_saving += any(folder.glob(".unfinished_*"))
            newest = checkpoints.newest(folder)
            checkpoints.verify(newest)
            if number % (len(STRATEGIES) * 2) >= len(STRATEGIES) or number + len(STRATEGIES) >= kills:
                answer = train_together({"run": replace(job)}, 2, root / f"end-{number}")
                recovered += equal(Path(answer["run"]["checkpoint"]), Path(done[f"{strategy}"]["checkpoint"]))
            else:
                recovered += newest.step > 0
            if not killed:
                print(f"kill {number}: the run was over before it")
    print(
        f"{kills} kills, {recovered} recoveries; {in_saving} fell into the saving of a checkpoint; the other process "
        f"ended at most {longest:.1f} s later"
    )
    return recovered == kills


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=60, help="of the run")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    raise SystemExit(not main(arguments.kills, arguments.steps, arguments.seed))
