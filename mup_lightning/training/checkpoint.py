"""A run's folder and its checkpoints, complete or absent.

A checkpoint is a folder `step_<step>` that holds the tensors (`tensors`), Lightning's counters and `checkpoint.json`,
which lists every file with its size and sha256, the run's configuration and data, and the step. The folder is made
under another name and renamed when all of it is on disk: a folder with the right name is complete. Checkpoints of steps
that a run makes anew, after a resume from an older checkpoint, are set aside: `step_<step>` is always part of the
history of the newest one.
"""

import hashlib
import itertools
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from mup_lightning.config.schema import Config, leaves
from mup_lightning.errors import UserError
from mup_lightning.files import make_folder, read_json, sync_folder, write_atomic, write_json

STATE_FILE = "state.ckpt"
MARKER_FILE = "checkpoint.json"
FORMAT_VERSION = 2


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint.

    Attributes:
        path: its folder.
        step: optimizer steps done.
        config: the run's whole configuration, as plain nested values.
        identity: what must be equal for the run to be continued exactly: `Config.identity` and the data's hash.
        files: name -> {"bytes", "sha256"}.
    """

    path: Path
    step: int
    config: dict[str, Any]
    identity: dict[str, Any]
    files: dict[str, dict[str, Any]]

    @property
    def state(self) -> Path:
        """The file that Lightning reads."""
        return self.path / STATE_FILE


class RunFolder:
    """One folder per run: resolved configuration, TensorBoard events, checkpoints, result.

    Args:
        config: says where the folder is.
    """

    def __init__(self, config: Config) -> None:
        self.path = Path(config.run.root) / config.run.name
        self.config_file = self.path / "config.yaml"
        self.result_file = self.path / "result.json"
        self.checkpoints = self.path / "checkpoints"
        self.tensorboard = self.path / "tensorboard"

    def refuse_used(self) -> None:
        """Raise UserError if the folder holds a run already."""
        saved = complete(self.checkpoints)
        if self.config_file.exists() or saved:
            state = f"a run with a checkpoint at {saved[-1].name}" if saved else "a run without a checkpoint"
            raise UserError(
                f"{self.path} already holds {state}; continue it (--run.resume last), give the new run another name "
                f"(--run.name NAME), or remove the folder"
            )

    def owns(self, checkpoint: Checkpoint) -> bool:
        """Whether the checkpoint is one of this run's own."""
        return checkpoint.path.resolve().parent == self.checkpoints.resolve()

    def has_logs(self) -> bool:
        """Whether TensorBoard would find something of this run."""
        return any(self.tensorboard.glob("*tfevents*"))

    def logged_at(self, step: int) -> set[str]:
        """Tags of the points that TensorBoard has of one step, without those that a resume has purged."""
        from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
        from tensorboard.compat.proto.event_pb2 import SessionLog

        found: set[str] = set()
        for file in sorted(self.tensorboard.glob("*tfevents*")):
            for event in EventFileLoader(str(file)).Load():
                if event.session_log.status == SessionLog.START and event.step <= step:
                    found.clear()
                elif event.step == step:
                    found |= {value.tag for value in event.summary.value}
        return found

    def open(self, config: Config, start: Checkpoint | None) -> None:
        """Make the folder and save the resolved configuration; that of a resumed run does not replace the first one.

        Where a run goes back to an older checkpoint of its own, the later ones belong to a history that is gone: they
        are set aside.
        """
        make_folder(self.path, "--run.root, --run.name")
        file = self.config_file
        if file.exists():
            file = self.path / f"config.resumed_at_{start.step if start else 0:08d}.yaml"
        write_atomic(file, yaml.safe_dump(plain(asdict(config)), sort_keys=False))
        if start and self.owns(start) and (aside := set_aside(self.checkpoints, start.step)):
            print(
                f"note: the run is made anew from step {start.step} on; its later checkpoints are kept as "
                f"{', '.join(map(str, aside))}"
            )

    def finished_result(self) -> dict[str, Any] | None:
        """The contents of result.json, if the run reached its end.

        Raises:
            UserError: the file is damaged.
        """
        if not self.result_file.is_file():
            return None
        expected = "the result of a run; remove it, and repeat this command"
        result = read_json(self.result_file, expected)
        if not isinstance(result, dict) or "finished" not in result:
            raise UserError(
                f"{self.result_file} is damaged: it does not say whether the run finished; expected {expected}"
            )
        return result if result["finished"] else None

    def save_result(self, result: dict[str, Any]) -> None:
        """Write result.json."""
        write_json(self.result_file, result)


def read(path: Path) -> Checkpoint:
    """Read a checkpoint's description; its state is neither read nor checked.

    Raises:
        UserError: there is no checkpoint, or its description cannot be read.
    """
    marker = path / MARKER_FILE
    if not marker.is_file():
        raise UserError(
            f"{path} is not a complete checkpoint: it has no {MARKER_FILE}; expected a folder such as "
            f"runs/NAME/checkpoints/step_00000200"
        )
    try:
        content = json.loads(marker.read_text())
        version = content["format_version"]
        if version != FORMAT_VERSION:
            raise UserError(f"{marker} has format version {version}; this version reads {FORMAT_VERSION}")
        return Checkpoint(path, content["step"], content["config"], content["identity"], content["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{marker} cannot be read ({error!r}); the checkpoint is damaged{_offer(path)}") from error


def verify(checkpoint: Checkpoint) -> None:
    """Compare every file of a checkpoint with its recorded size and hash.

    Raises:
        UserError: naming the damaged file, and offering the checkpoint before.
    """
    for name, expected in checkpoint.files.items():
        file = checkpoint.path / name
        found = file.stat().st_size if file.is_file() else None
        if found is None:
            problem = "is missing"
        elif found != expected["bytes"]:
            problem = f"has {found:,} bytes instead of {expected['bytes']:,}: it was cut short"
        elif _sha256(file) != expected["sha256"]:
            problem = "has other content than was saved (sha256 differs)"
        else:
            continue
        raise UserError(f"checkpoint {checkpoint.path} is damaged: {name} {problem}{_offer(checkpoint.path)}")


def complete(folder: Path) -> list[Path]:
    """The complete checkpoints in a run's folder of checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step_*") if (path / MARKER_FILE).is_file())


def newest(folder: Path) -> Checkpoint:
    """The newest complete checkpoint in a run's folder of checkpoints; raises UserError if there is none."""
    paths = complete(folder)
    if not paths:
        raise UserError(f"there is no complete checkpoint in {folder} to resume from; start the run without resuming")
    return read(paths[-1])


def find(path: Path) -> Checkpoint:
    """The checkpoint in a checkpoint's folder, or the newest one of a run's folder; raises UserError if none."""
    return newest(path / "checkpoints") if (path / "checkpoints").is_dir() else read(path)


def folder_name(step: int) -> str:
    """Name of the folder of a step's checkpoint; names sort by step."""
    return f"step_{step:08d}"


def unfinished(folder: Path, step: int) -> Path:
    """Where a checkpoint is written before it gets its name."""
    return folder / f".unfinished_{folder_name(step)}"


def seal(
    folder: Path,
    step: int,
    config: dict[str, Any],
    identity: dict[str, Any],
    keep: int,
    written: dict[str, dict[str, Any]],
) -> Checkpoint:
    """Turn the files in `unfinished(folder, step)`, synced already, into a checkpoint, and delete the oldest ones.

    Args:
        folder: the run's folder of checkpoints.
        step: optimizer steps done.
        config: see `Checkpoint`.
        identity: see `Checkpoint`.
        keep: complete checkpoints that stay, this one among them.
        written: {"bytes", "sha256"} of the tensor files, by name, from their writers; the rest is hashed here.
    """
    source, target = unfinished(folder, step), folder / folder_name(step)
    files = written | {
        path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(source.iterdir())
        if path.name not in written
    }
    content = {"format_version": FORMAT_VERSION, "step": step, "config": config, "identity": identity, "files": files}
    write_json(source / MARKER_FILE, content)
    if target.exists():  # the same step again, after a resume from an older checkpoint
        shutil.rmtree(target)
    source.rename(target)
    sync_folder(folder)
    for old in complete(folder)[:-keep]:
        # The marker goes first: a half-deleted checkpoint must not look complete.
        (old / MARKER_FILE).unlink()
        shutil.rmtree(old)
    for leftover in folder.glob(".unfinished_*"):
        shutil.rmtree(leftover)
    return read(target)


def set_aside(folder: Path, step: int) -> list[Path]:
    """Rename a run's checkpoints after `step`, from which it is about to be repeated.

    Otherwise they would be taken for the newest ones, and those that follow for the oldest, which are deleted.

    Returns:
        Their new folders, which no run deletes, and from which another run may start.
    """
    later = [path for path in complete(folder) if path.name > folder_name(step)]
    return [path.rename(_free(folder, f"aside_{path.name}")) for path in later]


def _free(folder: Path, name: str) -> Path:
    """The name itself, or with the first number that makes it new."""
    names = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
    return next(path for path in map(folder.joinpath, names) if not path.exists())


def differences(saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Compare two identities: one line for every key whose values differ."""
    a, b = leaves(saved), leaves(now)
    return [
        f"{key}: {a.get(key)} in the checkpoint, {b.get(key)} now"
        for key in sorted(a.keys() | b.keys())
        if a.get(key) != b.get(key)
    ]


def plain(value: Any) -> Any:
    """A value as YAML and JSON give it back: tuples become lists."""
    return json.loads(json.dumps(value))


def _offer(path: Path) -> str:
    """What to do instead of loading a damaged checkpoint."""
    before = [other for other in complete(path.parent) if other.name < path.name]
    if not before:
        return "; there is no checkpoint before it"
    return f"; the one before it is there: resume from {before[-1]} (--run.resume {before[-1]})"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
