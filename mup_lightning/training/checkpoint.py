"""Checkpoints on disk: complete or absent.

A checkpoint is a folder `step_<step>` that holds the tensors (`shards`), Lightning's counters and `checkpoint.json`,
which lists every file with its
size and sha256, what the run was (its configuration and data), and the step. The folder is made under another name
and renamed when all of it is on disk: a folder with the right name is complete. Those of steps that a run makes once
more, after a resume from an older checkpoint, are set aside: `step_<step>` is always what has led to the newest one.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mup_lightning.errors import UserError

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
            f"{path} is no complete checkpoint: it has no {MARKER_FILE}; expected a folder "
            f"such as runs/NAME/checkpoints/step_00000200"
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
    """The checkpoints of a run that are complete, oldest first."""
    return sorted(path for path in folder.glob("step_*") if (path / MARKER_FILE).is_file())


def newest(folder: Path) -> Checkpoint:
    """The newest complete checkpoint of a run.

    Raises:
        UserError: there is none.
    """
    paths = complete(folder)
    if not paths:
        raise UserError(f"there is no complete checkpoint in {folder} to resume from; start the run without resuming")
    return read(paths[-1])


def folder_name(step: int) -> str:
    """The folder of a step's checkpoint; names sort by step."""
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
    """Turn the files in `unfinished(folder, step)` into a complete checkpoint, and delete the oldest ones.

    Args:
        folder: the run's folder of checkpoints.
        step: optimizer steps done.
        config: see `Checkpoint`.
        identity: see `Checkpoint`.
        keep: complete checkpoints that stay, this one among them.
        written: {"bytes", "sha256"} of the tensor files, by name, as their writers know them; the rest is hashed here.
    """
    source, target = unfinished(folder, step), folder / folder_name(step)
    files = written | {
        path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(source.iterdir())
        if path.name not in written
    }
    content = {"format_version": FORMAT_VERSION, "step": step, "config": config, "identity": identity, "files": files}
    (source / MARKER_FILE).write_text(json.dumps(content, indent=1))
    for path in source.iterdir():
        if path.name not in written:
            _sync(path)
    _sync(source)
    if target.exists():  # the same step once more, after a resume from an older checkpoint
        shutil.rmtree(target)
    source.rename(target)
    _sync(folder)
    for old in complete(folder)[:-keep]:
        # The marker goes first: what is half deleted must not look complete.
        (old / MARKER_FILE).unlink()
        shutil.rmtree(old)
    for leftover in folder.glob(".unfinished_*"):
        shutil.rmtree(leftover)
    return read(target)


def set_aside(folder: Path, step: int) -> list[Path]:
    """Give other names to a run's checkpoints after `step`, from which it is about to be made anew.

    Else they would be taken for the newest ones, and those that follow for the oldest, which are deleted.

    Returns:
        their new folders, which no run deletes, and from which another run may start.
    """
    later = [path for path in complete(folder) if path.name > folder_name(step)]
    return [path.rename(_free(folder, f"aside_{path.name}")) for path in later]


def _free(folder: Path, name: str) -> Path:
    """The name itself, or with the first number that makes it new."""
    names = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
    return next(path for path in map(folder.joinpath, names) if not path.exists())


def differences(saved: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """Compare two nested dicts: one line for every key whose values differ."""
    lines = []
    for key in sorted(saved.keys() | now.keys()):
        before, after = saved.get(key), now.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            lines += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key}: {before} in the checkpoint, {after} now")
    return lines


def _offer(path: Path) -> str:
    """What to do instead of loading a damaged checkpoint."""
    before = [other for other in complete(path.parent) if other.name < path.name]
    if not before:
        return "; there is no checkpoint before it"
    return f"; the one before it is there: resume from {before[-1]} (--run.resume {before[-1]})"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Force a file or a folder's entries to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
