"""Run the trials of a sweep that are not finished, each once, on worker processes: `mup-lightning sweep`."""

import math
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

import lightning.pytorch as pl
import torch
from tqdm import tqdm

from mup_lightning import tables
from mup_lightning.callbacks.step import StepCallback, WatchedModule
from mup_lightning.config.forecast import CURVE_POINTS
from mup_lightning.config.schema import Config, RunConfig
from mup_lightning.errors import Busy, Diverged, UserError
from mup_lightning.files import OneWriter, check_folder, write_json
from mup_lightning.studies.scaling import six_digits
from mup_lightning.studies.sweep.grid import Trial, expand
from mup_lightning.studies.sweep.results import Record, prepare, read_trials, trial_file, write_table
from mup_lightning.studies.sweep.spec import SweepSettings, load
from mup_lightning.studies.transfer.losses import number
from mup_lightning.studies.workers import DIED, each, fitting, gpus, threads
from mup_lightning.tables import power_of_two
from mup_lightning.training.run import plain
from mup_lightning.training.train import train

LOG = "workers.log"
ASSUMED_SPEED = 4.0e10  # operations per second of one worker, until a trial has been timed


@dataclass
class Summary:
    """What became of a sweep."""

    finished: int = 0  # trials that have a result, earlier ones included
    # How many of those started now ended in which state; see `run_trial`.
    states: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)  # lines that name the trials without a result, and say why
    interrupted: bool = False  # by Ctrl-C or SIGTERM

    @property
    def exit_code(self) -> int:
        """130 after an interruption, 1 if trials have failed, else 0."""
        return 130 if self.interrupted else 1 if self.failed else 0


def run(settings: SweepSettings) -> int:
    """Run a sweep, or what is left of it; see `Summary.exit_code`."""
    sweep = load(settings.file, settings.set)
    whole = expand(sweep)
    number, of = map(int, settings.shard.split("/"))
    trials = whole[number - 1 :: of]  # as much work for each shard
    folder = settings.out or sweep.folder
    check_folder(folder)
    if not trials:
        print(f"{len(whole)} configurations, none of them in shard {settings.shard}")
        return 0
    if settings.dry_run:
        print(dry_run(trials, folder, settings.workers))
        return 0
    return run_trials(trials, folder, settings.workers, sweep.keep_runs, whole).exit_code


def run_trials(
    trials: list[Trial], folder: Path, workers: int | None, keep: str = "off", whole: Sequence[Trial] = ()
) -> Summary:
    """Run the trials that are not finished, and say what comes of them. Raises UserError if the folder cannot be used.

    `workers`: None: as many as the machine carries; `keep`: see `Sweep.keep_runs`; `whole`: the trials of the whole
    sweep, which are in the table, where these are a shard of it.
    """
    whole, total = whole or trials, len(trials)
    known = prepare(folder, whole)
    if others := len(known.keys() - {trial.hash for trial in whole}):
        print(f"note: results.csv leaves out {others} results in {folder} that are not of this sweep", file=sys.stderr)
    left = [trial for trial in trials if trial.hash not in known]
    summary = Summary(total - len(left))
    count, table = how_many(left, workers), folder / "results.csv"
    known_before = f"{total} configurations, {summary.finished} of them finished before"
    print(f"{known_before}; {count} worker processes; results in {table}", flush=True)
    do = partial(run_trial, folder=folder, keep=keep)
    on_gpu = left and left[0].config.trainer.accelerator == "gpu"
    options: dict[str, Any] = {"gpus": gpus() if on_gpu else (), "log": folder / LOG}
    outcomes = each(do, left, count, threads(count), died=lambda trial: ("failed", DIED), **options)
    form = "{desc} {percentage:3.0f}% |{bar}| [{elapsed}<{remaining}]"
    bar = tqdm(total=sum(trial.checked.work for trial in left), desc="sweep", bar_format=form, disable=None)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        for number, (state, text) in outcomes:
            trial = left[number]
            summary.states[state] += 1
            summary.finished += state in ("ran", "diverged", "finished")
            if state in ("ran", "diverged"):
                write_table(folder, whole, known)
            elif state == "failed":
                summary.failed.append(f"{trial.label}: {text}")
            tqdm.write(f"[{summary.finished}/{total}] {trial.label}: {text}", file=sys.stderr)
            bar.update(trial.checked.work)
    except KeyboardInterrupt:
        summary.interrupted = True
    finally:
        signal.signal(signal.SIGTERM, before)
        bar.close()
    # Workers may have finished trials while the interruption came, and so may other processes.
    write_table(folder, whole, known)
    summary.finished = len(known.keys() & {trial.hash for trial in trials})
    lines = [f"FAILED {reason}" for reason in summary.failed]
    if summary.failed:
        lines.append(f"the same command tries them again; what the workers printed is in {folder / LOG}")
    if others := summary.states["elsewhere"]:
        lines.append(f"{others} configurations are being run by another process in this folder")
    if lost := summary.states["diverged"]:
        lines.append(f"{lost} configurations diverged, which is a result, too")
    done = f"{summary.finished} of {total} are finished"
    stopped = f"stopped: {done}; the same command goes on from there"
    print("\n".join([*lines, stopped if summary.interrupted else f"{done}: {table}"]), flush=True)
    return summary


def run_all_trials(trials: list[Trial], folder: Path, workers: int | None, keep: str) -> int:
    """`run_trials` where every result is needed: the exit code is 0 only if there is one of each trial."""
    summary = run_trials(trials, folder, workers, keep)
    if summary.exit_code == 0 and summary.finished < len(trials):
        print(f"{folder} is not complete: repeat this command once the other process has ended", flush=True)
        return 1
    return summary.exit_code


def how_many(trials: list[Trial], asked: int | None) -> int:
    """Workers: as asked, or one a GPU, or one a core as memory allows; no more than trials."""
    if asked is not None or not trials:
        return min(asked or 0, len(trials))
    if trials[0].config.trainer.accelerator == "gpu":
        return min(len(gpus()), len(trials))
    return fitting(max(trial.checked.memory for trial in trials), len(trials))


def dry_run(trials: list[Trial], folder: Path, workers: int | None) -> str:
    """What would be run, a line for all trials that differ in the swept value and the seed alone, and what it costs."""
    records = read_trials(folder)
    speed, timed = speed_of(trials, records)
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        own = ("seed=", f"{trial.key.rpartition('.')[2]}=")
        label = " ".join(word for word in trial.label.split() if not word.startswith(own))
        groups.setdefault(label or "all", []).append(trial)
    lines = [["configurations", trials[0].key, "runs", "finished", "tokens", "FLOPs", "minutes"]]
    for label, group in groups.items():
        values = sorted({trial.value for trial in group})
        ends = " to ".join(dict.fromkeys(power_of_two(value) for value in (values[0], values[-1])))
        counts = str(len(group)), str(sum(trial.hash in records for trial in group))
        lines.append([label, f"{ends} ({len(values)})", *counts, *_cost(group, speed)])
    left = [trial for trial in trials if trial.hash not in records]
    tokens, flops, minutes = _cost(left, speed)
    basis = f"as {timed} finished ones took" if timed else f"a guess: {speed:.0e} operations per second and worker"
    return (
        f"{tables.text(lines)}\n\n{len(trials)} configurations, {len(left)} left: {tokens} tokens, {flops} FLOPs, "
        f"{minutes} minutes of one worker; {max(1, how_many(left, workers))} would run at once ({basis})"
    )


def speed_of(trials: Sequence[Trial], records: Mapping[str, Record]) -> tuple[float, int]:
    """Work per second of one worker, and how many of the trials that are finished it was taken from."""
    took = {name: number(str(record["result"]["seconds"])) for name, record in records.items()}
    timed = [trial for trial in trials if took.get(trial.hash, 0) > 0]  # a table may not say
    seconds = sum(took[trial.hash] for trial in timed)
    return sum(trial.checked.work for trial in timed) / seconds if timed else ASSUMED_SPEED, len(timed)


def _cost(trials: list[Trial], speed: float) -> list[str]:
    """Tokens, FLOPs, and minutes of one worker at this speed."""
    tokens, flops, work = (sum(getattr(one.checked, what) for one in trials) for what in ("tokens", "flops", "work"))
    return [f"{tokens:,}", f"{flops:.2g}", f"{work / speed / 60:.1f}"]


def run_trial(trial: Trial, folder: Path, keep: str) -> tuple[str, str]:
    """Train a trial and write its file, unless it exists or another process is running the trial.

    Returns what became of it, and the same in words: ran, diverged (a result, too), finished (before, by another
    process), elsewhere (another process is running it) or failed.
    """
    file = trial_file(folder, trial.hash)
    try:
        with OneWriter(file.with_suffix(".writer"), trial.label):
            if file.exists():
                return "finished", "another process has run it"
            result = measure(trial, folder / "runs", keep)
            write_json(file, {"config": plain(asdict(trial.config)), "result": result})
    except Busy:
        return "elsewhere", "another process is running it"
    except UserError as error:
        return "failed", str(error)
    except OSError as error:  # neither would any other trial's result find room
        raise OSError(error.errno, error.strerror, str(error.filename or file)) from None
    except Exception as error:  # a bug, or no memory: the sweep continues and reports it at the end
        traceback.print_exc()
        return "failed", f"{type(error).__name__}: {error}"
    if result["diverged"]:
        return "diverged", f"diverged, {result['diverged']}"
    return "ran", f"loss {result['loss']:.4f} in {result['seconds']:.0f} s"


def measure(trial: Trial, root: Path, keep: str) -> dict[str, Any]:
    """Train a trial in a run folder below `root`: what only the run knows of its row; a divergence is a result, too."""
    begin = time.perf_counter()
    config = placed(trial, root)
    folder = Path(config.run.root) / config.run.name
    shutil.rmtree(folder, ignore_errors=True)  # what a killed worker has left
    seen, max_steps = StepLosses(), config.trainer.max_steps
    loss, speed, noise, diverged = None, 0.0, None, ""
    try:
        result = train(config, callbacks=[seen], progress=False, keep=keep != "off")
    except Diverged as error:
        diverged = error.short
    else:
        if not result.finished:
            raise KeyboardInterrupt  # which the training itself has taken for a wish to end
        speed, loss, noise = result.tokens_per_second, result.validation_loss, result.noise_scale
        if loss is None or not math.isfinite(loss):
            loss, diverged = None, f"step {result.steps}: the validation loss is {loss}"
    if keep == "logs":
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    losses = torch.stack(seen.all).cpu() if seen.all else torch.empty(0)
    train_loss = float(losses[-max(1, max_steps // 10) :].mean())
    return {
        "loss": loss,
        "train_loss": train_loss if math.isfinite(train_loss) else None,
        "steps": seen.steps,
        "tokens": seen.steps * config.tokens_per_step,
        "seconds": round(time.perf_counter() - begin, 3),
        "tokens_per_second": round(speed, 1),
        "noise_scale": noise and round(noise, 1),
        "diverged": diverged,
        "curve": six_digits(curve(losses.tolist(), seen.steps, max_steps)),
    }


def placed(trial: Trial, root: Path) -> Config:
    """A trial's configuration with a run folder; the corpus has been verified for the whole sweep already."""
    name = f"{trial.label.replace(' ', '-').replace('/', '-')}-{trial.hash[:8]}"
    run = RunConfig(str(root), name, str(trial.start.path) if trial.start else None)
    return replace(trial.config, run=run, data=replace(trial.config.data, verify=False))


class StepLosses(StepCallback):
    """Keeps the training loss of every step, on the device, and how many steps the run has made."""

    def __init__(self) -> None:
        self.all: list[torch.Tensor] = []
        self.steps = 0

    def on_step_end(self, trainer: pl.Trainer, module: WatchedModule, step: int) -> None:
        """See `StepCallback`."""
        self.steps = step
        self.all.append(module.step_loss())


def curve(losses: Sequence[float], steps: int, max_steps: int) -> list[float]:
    """Means of CURVE_POINTS equal parts of a run, of the losses up to `steps`; fewer where there are fewer."""
    parts = groupby(enumerate(losses, steps - len(losses) + 1), lambda at: -(-at[0] * CURVE_POINTS // max_steps))
    return [fmean(loss for _, loss in part) for _, part in parts]
