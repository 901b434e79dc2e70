"""Checkpoints, complete or absent.

A checkpoint is a folder `step_<step>` that holds the tensors (`tensors`), Lightning's counters and `checkpoint.json`,
which lists every file with its size and sha256, the run's configuration and data, and the step. The folder is made
under another name and renamed when all of it is on disk: a folder with the right name is complete.
"""

import itertools
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mup_lightning.errors import UserError
from mup_lightning.files import file_sha256, sync_folder, write_json

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
        if not file.is_file() or file.stat().st_size != expected["bytes"]:
            problem = f"is missing or was cut short: expected {expected['bytes']:,} bytes"
        elif file_sha256(file) != expected["sha256"]:
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
        path.name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
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
    return Checkpoint(target, step, config, identity, files)


def set_aside(folder: Path, step: int) -> list[Path]:
    """Rename a run's checkpoints after `step`, from which it is about to be repeated, so that none is the newest one.

    Returns:
        Their new folders, which no run deletes, and from which another run may start.
    """
    aside = []
    for path in complete(folder):
        if path.name > folder_name(step):
            names = (f"aside_{path.name}{f'_{number}' if number > 1 else ''}" for number in itertools.count(1))
            aside.append(path.rename(next(free for name in names if not (free := folder / name).exists())))
    return aside


def _offer(path: Path) -> str:
    """What to do instead of loading a damaged checkpoint."""
    before = [other for other in complete(path.parent) if other.name < path.name]
    if not before:
        return "; there is no checkpoint before it"
    return f"; the one before it is there: resume from {before[-1]} (--run.resume {before[-1]})"
