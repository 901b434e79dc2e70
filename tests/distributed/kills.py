"""Kill one of two training processes at random moments, again and again, and check that nothing is ever lost.

    python -m tests.distributed.kills --kills 50

Every restart resumes from the newest complete checkpoint. The run saves after every step, so that many of the kills
fall into the saving. A run is killed twice; its weights must then become those of an undisturbed run to the bit.
"""

import argparse
import random
import signal
import tempfile
import time
from pathlib import Path

import torch
from tqdm import tqdm

from mup_lightning.training import checkpoint as checkpoints
from mup_lightning.training.tensors import Shards
from tests.conftest import tiny_config, write_corpus
from tests.distributed.launch import Together

STRATEGIES = ("zero1", "zero3", "ddp", "zero2", "zero0")


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
        The seconds until the other process had ended too.
    """
    saved = Path(job.run.root) / job.run.name / "checkpoints"
    before = {path.name for path in checkpoints.complete(saved)}
    with Together(2, folder) as together:
        together.start([job])
        while {path.name for path in checkpoints.complete(saved)} == before:  # a new step has been saved
            time.sleep(0.005)
        time.sleep(chance.uniform(0.0, 0.6))
        victim = chance.randrange(2)
        together.processes[victim].send_signal(signal.SIGKILL)
        begin = time.monotonic()
        while together.processes[1 - victim].poll() is None and time.monotonic() - begin < 30:
            time.sleep(0.01)
        return time.monotonic() - begin


def main(kills, steps, seed):
    chance = random.Random(seed)
    recovered, longest, in_saving = 0, 0.0, 0
    with tempfile.TemporaryDirectory(prefix="kills-") as scratch:
        root = Path(scratch)
        corpus = write_corpus(root / "corpus")

        def config(name, strategy):
            changes = {"data.micro_batch": 2, "model.dropout": 0.1, "run.name": name, "run.resume": "auto"}
            trainer = {"max_steps": steps, "checkpoint_every": 1, "validate_every": 0, "devices": 2}
            changes |= {f"trainer.{key}": value for key, value in trainer.items()} | {"trainer.strategy": strategy}
            return tiny_config(corpus, root / "runs", **changes)

        with Together(2, root / "straight") as together:
            straight = together.train([config(f"straight-{strategy}", strategy) for strategy in STRATEGIES])
        for number in tqdm(range(kills), desc="kills", disable=None):
            turn, strategy = number // len(STRATEGIES), STRATEGIES[number % len(STRATEGIES)]
            job = config(f"run-{turn // 2}-{strategy}", strategy)
            longest = max(longest, life(job, root / f"life-{number}", chance))
            folder = root / "runs" / job.run.name / "checkpoints"
            in_saving += any(folder.glob(".unfinished_*"))
            newest = checkpoints.newest(folder)
            checkpoints.verify(newest)
            if turn % 2 == 0 and number + len(STRATEGIES) < kills:  # it will be killed once more
                recovered += newest.step > 0
                continue
            with Together(2, root / f"end-{number}") as together:
                end = together.train([job])[job.run.name]
            recovered += equal(end, straight[f"straight-{strategy}"])
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
