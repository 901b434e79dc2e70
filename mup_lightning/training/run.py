"""A run's folder: resolved configuration, TensorBoard events, checkpoints, result; and where the run continues."""

import csv
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from mup_lightning.config import identity as identities
from mup_lightning.config.schema import Config, ScheduleConfig, leaves
from mup_lightning.data.encodings import DESCRIPTION, describe
from mup_lightning.data.mixture import Corpora
from mup_lightning.errors import UserError
from mup_lightning.files import FAILING_DISK, OneWriter, make_folder, read_json, write_atomic, write_json, yaml_text
from mup_lightning.optim.registry import used_sections
from mup_lightning.optim.schedule import first_difference, lr_factor
from mup_lightning.training import checkpoint as checkpoints
from mup_lightning.training.checkpoint import Checkpoint
from mup_lightning.typed import as_typed, build


@dataclass(frozen=True)
class Result:
    """The outcome of a run; also the contents of result.json.

    Attributes:
        finished: false where a signal stopped it before its last step.
        steps: optimizer steps done, over all resumes.
        first_step: how many of them were done before this process's part of the run.
        validation_loss: nats per token after the last step; None where the run was stopped before it.
        unigram_loss: nats per token of a unigram model of the same corpus: what frequencies alone achieve.
        tokens: trained on, over all resumes.
        parameters: of the model.
        seconds: wall time of this process's part of the run, start-up and validation included.
        tokens_per_second: in training steps alone.
        checkpoint: the newest one.
        tensorboard: folder of the event files; None where nothing was kept.
        versions: of the packages that computed it, and the git revision.
        noise_scale: the gradient noise scale at the end, tokens; None where it is unknown.
        bits_per_byte: of the validation text, where the validation loss is not None.
    """

    finished: bool
    steps: int
    first_step: int
    validation_loss: float | None
    unigram_loss: float
    tokens: int
    parameters: int
    seconds: float
    tokens_per_second: float
    checkpoint: str | None
    tensorboard: str | None
    versions: dict[str, str | None]
    noise_scale: float | None = None
    bits_per_byte: float | None = None


class RunFolder:
    """The folder of a run."""

    def __init__(self, config: Config) -> None:
        self.path = Path(config.run.root) / config.run.name
        self.config_file = self.path / "config.yaml"
        self.result_file = self.path / "result.json"
        self.checkpoints = self.path / "checkpoints"
        self.tensorboard = self.path / "tensorboard"
        self.csv = self.path / "csv" / "metrics.csv"
        self.writer = OneWriter(self.path / "writer.lock", f"the run {self.path}")

    @contextmanager
    def written(self) -> Iterator[None]:
        """Be the only process that writes into the folder, which is made; it is removed if nothing was written.

        Raises Busy where another process is writing, UserError where the folder cannot be made, or its disk fails.
        """
        made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        make_folder(self.path, "--run.root, --run.name")
        hook = threading.excepthook

        def quiet(thread: threading.ExceptHookArgs) -> None:
            """TensorBoard's thread passes its error on to the training, and prints it, too."""
            if not (isinstance(thread.exc_value, OSError) and thread.exc_value.errno in FAILING_DISK):
                hook(thread)

        threading.excepthook = quiet
        try:
            with self.writer:
                yield
        except OSError as error:
            if error.errno not in FAILING_DISK:
                raise
            advice = "make room, or mend the cause, then continue it (--run.resume last)"
            raise UserError(f"the run {self.path} cannot be written: {error.strerror}; {advice}") from None
        finally:
            threading.excepthook = hook
            with suppress(OSError):
                for folder in made:
                    folder.rmdir()

    def owns(self, checkpoint: Checkpoint) -> bool:
        """Whether the checkpoint is one of this run's own."""
        return checkpoint.path.resolve().parent == self.checkpoints.resolve()

    def logged_at(self, step: int) -> set[str] | None:
        """Tags of the points in TensorBoard, or else in the table, of a step, without purged ones; None: no logs."""
        from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
        from tensorboard.compat.proto.event_pb2 import SessionLog

        files, found = sorted(self.tensorboard.glob("*tfevents*")), set[str]()
        if not files:
            rows = self.rows()
            return {tag for row in rows if int(row["step"]) == step for tag in row} if self.csv.is_file() else None
        for event in (event for file in files for event in EventFileLoader(str(file)).Load()):
            if event.session_log.status == SessionLog.START and event.step <= step:
                found.clear()
            elif event.step == step:
                found |= {value.tag for value in event.summary.value}
        return found

    def rows(self) -> list[dict[str, str]]:
        """What the table of curves has in each row, by tag; without the row that a killed run had begun."""
        if not self.csv.is_file():
            return []
        with self.csv.open(newline="", encoding="utf-8") as file:
            rows = [{tag: value for tag, value in row.items() if tag and value} for row in csv.DictReader(file)]
        return [row for row in rows if row.get("step", "").isdecimal()]

    def open(self, config: Config, start: Checkpoint | None) -> None:
        """Save the resolved configuration; that of a resumed run does not replace the first one. And the tokenizer.

        Where a run goes back to an older checkpoint of its own, the later ones are set aside. What the process before
        it was killed too early to delete is deleted.
        """
        resumed = self.path / f"config.resumed_at_{start.step if start else 0:08d}.yaml"
        write_atomic(resumed if self.config_file.exists() else self.config_file, yaml_text(plain(config)))
        own = Path(next(iter(config.data.sources))) / DESCRIPTION
        if own.is_file() and (tokenizer := describe(own)):
            tokenizer.save(self.path)
        if start and self.owns(start) and (aside := checkpoints.set_aside(self.checkpoints, start.step)):
            print(
                f"note: the run is made anew from step {start.step} on; its later checkpoints are kept as "
                f"{', '.join(map(str, aside))}"
            )
        checkpoints.prune(self.checkpoints, config.trainer.keep_checkpoints)

    def finished_result(self) -> Result | None:
        """The contents of result.json, if the run reached its end; raises UserError if the file is damaged."""
        if not self.result_file.is_file():
            return None
        try:
            result = build(Result, read_json(self.result_file, "the result of a run"))
        except UserError as error:
            raise UserError(f"{self.result_file}: {error}; remove it, and repeat this command") from None
        return result if result.finished else None

    def save_result(self, result: Result) -> None:
        """Write result.json. Raises UserError where another process has taken the run over."""
        self.writer.check()
        write_json(self.result_file, asdict(result))


def identity_of(config: Config, corpora: Corpora) -> dict[str, Any]:
    """What must be equal for a run to be continued exactly, as plain nested values.

    The configuration's section `rules` is resolved; those of rules that the run does not use are left out.
    """
    identity = plain(identities.identity(config)) | {"corpus": corpora.hash}
    return identity | {"rules": {name: identity["rules"][name] for name in used_sections(config.recipe.optimizer)}}


def resume_from(config: Config, folder: RunFolder, identity: dict[str, Any], *, keep: bool = True) -> Checkpoint | None:
    """Find, check and compare the checkpoint to continue from; None for a new run.

    Raises UserError where it is missing or damaged, belongs to another run or was set aside in this one, or all its
    steps are done (which `auto` allows); or the run is a new one, but the folder, where it is kept, holds another.
    """
    resume, auto = config.run.resume, config.run.resume == "auto"
    saved = checkpoints.complete(folder.checkpoints)
    start = None
    if resume == "last" or (auto and saved):
        start = checkpoints.newest(folder.checkpoints)
    elif resume is not None and not auto:
        start = checkpoints.read(Path(resume))
    # Under auto, what an earlier start of the same job has left without a checkpoint is replaced.
    new = not auto and not (start and folder.owns(start))
    if keep and new and is_first_process() and (folder.config_file.exists() or saved):
        state = f"a run with a checkpoint at {saved[-1].name}" if saved else "a run without a checkpoint"
        raise UserError(
            f"{folder.path} already holds {state}; continue it (--run.resume last), give the new run another name "
            f"(--run.name NAME), or remove the folder"
        )
    if start:
        _check(start, config, folder, identity)
    return start


def _check(start: Checkpoint, config: Config, folder: RunFolder, identity: dict[str, Any]) -> None:
    if folder.owns(start) and checkpoints.step_of(start.path) != start.step:
        aside = start.path.name.startswith("aside_")
        what = "was set aside when its run went back to an older checkpoint" if aside else "is a copy or a link"
        raise UserError(
            f"{start.path} {what}, and that run may have other steps now; continue it as another one (--run.name "
            f"NAME), or make it the run's own again by the name {checkpoints.folder_name(start.step)}"
        )
    used = {name: options for name, options in start.identity["rules"].items() if name in identity["rules"]}
    _refuse_different(start, start.identity | {"rules": used, "schedule": {}}, identity | {"schedule": {}})
    steps, planned = config.trainer.max_steps, start.config["trainer"]["max_steps"]
    schedule = build(ScheduleConfig, start.config["schedule"], "schedule.")
    before = replace(config, schedule=schedule, trainer=replace(config.trainer, max_steps=planned))
    then, now = lr_factor(before), lr_factor(config)
    # The whole shape of these two belongs to the length of the run: who changes that means to change the shape.
    meant = config.schedule == before.schedule and config.schedule.kind in ("cosine", "linear")
    if not meant and (found := first_difference(then, now, start.step)):
        done, old, new = found
        what = f"its step {done + 1} was made at {old} of the peak learning rate and would now be made at {new}; "
        keys = [{"schedule": asdict(c.schedule), "trainer.max_steps": c.trainer.max_steps} for c in (before, config)]
        _refuse_different(start, keys[0], keys[1], what)
    # A run that was killed between its last checkpoint and its result still has that to write.
    without_result = planned == steps and folder.owns(start) and not folder.finished_result()
    if start.step >= steps and config.run.resume != "auto" and not without_result:
        raise UserError(
            f"{start.path} already has all {start.step} steps of the run; raise --trainer.max_steps to train on"
        )
    if is_first_process():
        checkpoints.verify(start)
        if planned != steps:
            print(
                f"note: the run was planned for {planned} steps and now has {steps}; the schedule's factor on the "
                f"learning rate at step {start.step} goes from {then(start.step):.4f} to {now(start.step):.4f}"
            )


def _refuse_different(start: Checkpoint, before: dict[str, Any], now: dict[str, Any], what: str = "") -> None:
    """Raise UserError, naming all keys that differ between a checkpoint and the run that is to continue it."""
    saved, own = identities.ADDED | leaves(before), identities.ADDED | leaves(now)
    # Of base factors, those that are 1 are left out now.
    neutral = {key: 1.0 for key in saved.keys() | own.keys() if key.startswith("recipe.base.")}
    saved, own = neutral | saved, neutral | own
    if differing := [key for key in sorted(saved.keys() | own.keys()) if saved.get(key) != own.get(key)]:
        values = {key: (as_typed(saved.get(key)), as_typed(own.get(key))) for key in differing}
        lines = "".join(f"\n  {key}: {old} in the checkpoint, {new} now" for key, (old, new) in values.items())
        raise UserError(
            f"{start.path} cannot be continued exactly, because {what}this run differs in:{lines}\n"
            f"Resume with the values of the checkpoint (see config.yaml in its run's folder), or start a new run "
            f"(--run.name NAME)"
        )


def is_first_process() -> bool:
    """Whether this is the process that prints and writes (global rank 0, as the launcher's environment says)."""
    return getattr(rank_zero_only, "rank", 0) == 0


def plain(value: Any) -> Any:
    """A value as YAML and JSON give it back: a dataclass becomes a dictionary, tuples become lists."""
    return json.loads(json.dumps(value, default=asdict))
