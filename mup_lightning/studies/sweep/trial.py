"""One trial of a sweep, as a worker process runs it: train it, and write its file."""

import math
import shutil
import time
import traceback
from collections import deque
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from filelock import FileLock, Timeout

from mup_lightning.callbacks.step import StepCallback, WatchedModule
from mup_lightning.config.schema import Config, RunConfig
from mup_lightning.errors import Diverged, UserError
from mup_lightning.files import write_json
from mup_lightning.studies.sweep.grid import Trial
from mup_lightning.studies.sweep.results import trial_file
from mup_lightning.training.run import plain
from mup_lightning.training.train import train


def run_trial(trial: Trial, folder: Path, keep: str) -> tuple[str, str]:
    """Train a trial and write its file, unless it exists or another process is running the trial.

    Args:
        trial: to run.
        folder: of the sweep.
        keep: see `Sweep.keep_runs`.

    Returns:
        What became of it: ran, diverged (which is a result, too), finished (before, by another process), elsewhere
        (another process is running it) or failed; and the same in words.
    """
    file = trial_file(folder, trial.hash)
    lock = FileLock(file.with_suffix(".lock"), fallback_to_soft=False, blocking=False)
    try:
        with lock:
            if file.exists():
                return "finished", "another process has run it"
            result = measure(trial, folder / "runs", keep)
            write_json(file, {"config": plain(asdict(trial.config)), "result": result})
            Path(lock.lock_file).unlink()  # nobody asks for it any more, now that the file is there
    except Timeout:
        return "elsewhere", "another process is running it"
    except UserError as error:
        return "failed", str(error)
    except Exception as error:  # a bug, or no memory: the sweep continues and reports it at the end
        traceback.print_exc()
        return "failed", f"{type(error).__name__}: {error}"
    if result["diverged"]:
        return "diverged", f"diverged, {result['diverged']}"
    return "ran", f"loss {result['loss']:.4f} in {result['seconds']:.0f} s"


def measure(trial: Trial, root: Path, keep: str) -> dict[str, Any]:
    """Train a trial.

    Args:
        trial: to run.
        root: folder of the run folders.
        keep: see `Sweep.keep_runs`.

    Returns:
        The columns that only the run knows: losses (None if there is none), steps, seconds, why it diverged.

    Raises:
        UserError: it cannot be trained. Divergence is a result, not an error.
    """
    begin = time.perf_counter()
    config = placed(trial, root)
    folder = Path(config.run.root) / config.run.name
    shutil.rmtree(folder, ignore_errors=True)  # what a killed worker has left
    last = LastLosses(max(1, config.trainer.max_steps // 10))
    loss, speed, diverged = None, 0.0, ""
    try:
        result = train(config, callbacks=[last], progress=False, keep=keep != "off")
    except Diverged as error:
        diverged = f"step {error.step}: {str(error).splitlines()[0].partition(' in step')[0]}"
    else:
        if not result.finished:
            raise KeyboardInterrupt  # which the training itself has taken for a wish to end
        speed, loss = result.tokens_per_second, result.validation_loss
        if loss is None or not math.isfinite(loss):
            loss, diverged = None, f"step {result.steps}: the validation loss is {loss}"
    if keep == "logs":
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    train_loss = float(torch.stack([*last.losses]).mean()) if last.losses else math.nan
    return {
        "loss": loss,
        "train_loss": train_loss if math.isfinite(train_loss) else None,
        "steps": last.steps,
        "tokens": last.steps * config.data.batch_size * config.model.context,
        "seconds": round(time.perf_counter() - begin, 3),
        "tokens_per_second": round(speed, 1),
        "diverged": diverged,
    }


def placed(trial: Trial, root: Path) -> Config:
    """A trial's configuration with a run folder; the corpus has been verified for the whole sweep already."""
    name = f"{trial.label.replace(' ', '-').replace('/', '-')}-{trial.hash[:8]}"
    return replace(trial.config, run=RunConfig(str(root), name), data=replace(trial.config.data, verify=False))


class LastLosses(StepCallback):
    """Keeps the number of steps, and the training losses of the last `count` of them, on the device."""

    def __init__(self, count: int) -> None:
        self.steps = 0
        self.losses: deque[torch.Tensor] = deque(maxlen=count)

    def on_step_end(self, trainer: pl.Trainer, module: WatchedModule, step: int) -> None:
        """See `StepCallback`."""
        self.steps = step
        self.losses.append(module.step_loss())
