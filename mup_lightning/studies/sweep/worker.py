"""A process that runs one configuration after another: torch and Lightning are imported once."""

from __future__ import annotations

import gc
import math
import os
import shutil
import sys
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from mup_lightning.config.schema import Config
from mup_lightning.errors import Diverged, UserError
from mup_lightning.studies.sweep.table import Outcome
from mup_lightning.studies.workers import start_up

_TELL_EVERY = 0.5
"""Seconds between a worker's reports of its step."""


@dataclass(frozen=True)
class Task:
    """A run to do.

    Attributes:
        config: with its run folder, which is not made unless `keep`.
        keep: leave TensorBoard logs and checkpoints in it.
        judge_after: see `Watch`.
        limit: see `Watch`.
        limit_in_words: why a run above the limit is hopeless.
    """

    config: Config
    keep: bool
    judge_after: int | None = None
    limit: float = 0.0
    limit_in_words: str = ""


Message = tuple[str, Any]
"""What a worker tells: ("ready", None), then for each task ("step", int) now and then, and at last ("done", Outcome) or
("failed", str)."""


def work(tasks: Connection, environment: dict[str, str], threads: int, log: Path) -> None:
    """Run tasks until told None.

    Args:
        tasks: gives `Task` or None, takes `Message`.
        environment: set before torch is imported.
        threads: of torch on the CPU.
        log: what libraries print goes to its end.
    """
    _print_to(log)
    start_up(threads, environment)
    import mup_lightning.training.train  # noqa: F401  (the slow import belongs to the start, not to the first run)

    tasks.send(("ready", None))
    while (task := tasks.recv()) is not None:
        tasks.send(_answer(task, tasks))
        gc.collect()  # a Trainer and its module refer to each other, and hold the run's memory


def _answer(task: Task, tasks: Connection) -> Message:
    try:
        return "done", run(task, lambda step: tasks.send(("step", step)))
    except UserError as error:
        return "failed", str(error)
    except Exception as error:  # a fault of ours, or no memory: the sweep goes on and says so at its end
        traceback.print_exc()
        return "failed", f"{type(error).__name__}: {error}"


def run(task: Task, tell: Any) -> Outcome:
    """Train one configuration.

    Args:
        task: what to run.
        tell: called with the step, now and then.

    Raises:
        UserError: it cannot be trained. Divergence is an outcome, not an error.
    """
    from mup_lightning.studies.sweep.watch import Watch
    from mup_lightning.training.train import train

    begin = told = time.perf_counter()

    def tell_now_and_then(step: int) -> None:
        nonlocal told
        if time.perf_counter() - told > _TELL_EVERY:
            told = time.perf_counter()
            tell(step)

    config = task.config
    # What a killed worker left of this run.
    shutil.rmtree(Path(config.run.root) / config.run.name, ignore_errors=True)
    watch = Watch(config.trainer.max_steps, tell_now_and_then, task.judge_after, task.limit)
    loss, speed, diverged = None, 0.0, ""
    try:
        result = train(config, callbacks=[watch], progress=False, keep=task.keep)
    except Diverged as error:
        diverged = f"step {error.step}: {str(error).splitlines()[0].partition(' in step')[0]}"
    else:
        speed = result.tokens_per_second
        if not result.finished and not watch.hopeless:
            raise SystemExit(1)  # a signal for this process alone: the sweep sees a worker that died
        if result.validation_loss is not None and math.isfinite(result.validation_loss):
            loss = result.validation_loss
        elif result.finished:
            diverged = f"step {result.steps}: the validation loss is {result.validation_loss}"
    return Outcome(
        loss=loss,
        train_loss=watch.mean(),
        steps=watch.steps,
        parameters=watch.parameters,
        seconds=time.perf_counter() - begin,
        tokens_per_second=speed,
        diverged=diverged,
        stopped=f"step {watch.steps}: training loss {watch.early_loss:.4f}, {task.limit_in_words}"
        if watch.hopeless
        else "",
        early_loss=watch.early_loss,
    )


def _print_to(log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
