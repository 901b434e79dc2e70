"""Checkpoints, complete or absent.

A checkpoint is a folder `step_<step>` that holds the tensors (`tensors`), Lightning's counters and `checkpoint.json`,
which lists every file with its size and sha256, the run's configuration and data, and the step. The folder is made
under another name and renamed when all of it is on disk: a folder with the right name is complete.

Only folders with exactly such names count, and are ever renamed or deleted. Copies and links that a user has put beside
them (`step_best`, `step_00000050 (copy)`) are the user's.
"""

import itertools
import os
import re
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mup_lightning.errors import UserError
from mup_lightning.files import file_sha256, read_json, sync_folder, warn_once, write_json

STATE_FILE = "state.ckpt"
MARKER_FILE = "checkpoint.json"
FORMAT_VERSION = 2


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: its folder, the optimizer steps done, and the whole configuration as plain nested values.

    `identity`: what must be equal for the run to be continued exactly, `config.identity` and the data's hash; `files`:
    name -> {"bytes", "sha256"}.
    """

    path: Path
    step: int
    config: dict[str, Any]
    identity: dict[str, Any]
    files: dict[str, dict[str, Any]]


def read(path: Path) -> Checkpoint:
    """Read a checkpoint's description alone; raises UserError where there is none, or it cannot be read."""
    marker = path / MARKER_FILE
    if not marker.is_file():
        found = f"is not a complete checkpoint: it has no {MARKER_FILE}" if path.exists() else "does not exist"
        raise UserError(f"{path} {found}; expected a folder such as runs/NAME/checkpoints/step_00000200")
    try:
        content = read_json(marker, "a checkpoint's description")
        version = content["format_version"]
        if version != FORMAT_VERSION:
            raise UserError(f"{marker} has format version {version}; this version reads {FORMAT_VERSION}")
        return Checkpoint(path, content["step"], content["config"], content["identity"], content["files"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{marker} is damaged: it lacks {error}{_offer(path)}") from None
    except UserError as error:
        raise UserError(f"{error}{_offer(path)}") from None


def verify(checkpoint: Checkpoint) -> None:
    """Compare every file with its recorded size and hash; raises UserError, which offers the checkpoint before."""
    for name, expected in checkpoint.files.items():
        file = checkpoint.path / name
        if not checkpoint.path.exists():
            raise UserError(f"{checkpoint.path} is gone: its run goes on, and has deleted it; repeat the command")
        if not file.is_file() or file.stat().st_size != expected["bytes"]:
            problem = f"is missing or was cut short: expected {expected['bytes']:,} bytes"
        elif file_sha256(file) != expected["sha256"]:
            problem = "has other content than was saved (sha256 differs)"
        else:
            continue
        raise UserError(f"checkpoint {checkpoint.path} is damaged: {name} {problem}{_offer(checkpoint.path)}")


def step_of(path: Path) -> int | None:
    """The step of a folder of the program's own; None for anything else, such as a user's copy, or a link."""
    name = re.fullmatch(r"step_(\d+)", path.name)
    if name is None or path.name != folder_name(int(name[1])) or path.is_symlink() or not path.is_dir():
        return None
    try:
        return int(name[1]) if read_json(path / MARKER_FILE, "")["step"] == int(name[1]) else None
    except (UserError, KeyError, TypeError):  # incomplete or damaged: `read` says so
        return int(name[1])


def complete(folder: Path) -> list[Path]:
    """The complete checkpoints in a run's folder of checkpoints, oldest first."""
    steps = {step_of(path): path for path in folder.glob("step_*") if (path / MARKER_FILE).is_file()}
    return [steps[step] for step in sorted(step for step in steps if step is not None)]


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
    folder: Path, step: int, config: dict[str, Any], identity: dict[str, Any], written: dict[str, dict[str, Any]]
) -> Checkpoint:
    """Turn the files in `unfinished(folder, step)`, synced already, into a checkpoint of a run's folder of checkpoints.

    `written` is {"bytes", "sha256"} of the tensor files, by name, from their writers; the state is hashed here. Raises
    OSError where it cannot be written.
    """
    source, target = unfinished(folder, step), folder / folder_name(step)
    state = source / STATE_FILE
    files = written | {STATE_FILE: {"bytes": state.stat().st_size, "sha256": file_sha256(state)}}
    content: dict[str, Any] = {"step": step, "config": config, "identity": identity, "files": files}
    write_json(source / MARKER_FILE, {"format_version": FORMAT_VERSION, **content})
    if os.path.lexists(target):  # the same step again, after a resume from an older checkpoint
        discard(target)
    source.rename(target)
    sync_folder(folder)
    return Checkpoint(target, **content)


def prune(folder: Path, keep: int) -> None:
    """Delete the complete checkpoints before the last `keep`, and what a killed process has left half done."""
    try:
        for old in [*complete(folder)[:-keep], *filter(_is_leftover, folder.glob(".*_step_*"))]:
            discard(old)
    except OSError as error:
        warn_once(folder, f"old checkpoints cannot be deleted ({error.strerror}); this threatens none that is kept")


def discard(path: Path) -> None:
    """Free a name of the program's own at once, and delete the folder that had it.

    What cannot be deleted yet (on NFS, files that another process has open) waits for the next call of `prune`. Raises
    UserError where the name is taken by something that is the user's, OSError where it cannot be freed.
    """
    if step_of(path) is None and not _is_leftover(path):
        raise UserError(f"{path} is not a folder that this program has made; move it away")
    gone = path
    if not path.name.startswith(".discarded_"):
        gone = path.rename(path.with_name(f".discarded_{path.name.lstrip('.')}_{secrets.token_hex(4)}"))
    shutil.rmtree(gone, ignore_errors=True)
    if gone.exists():
        warn_once(gone, "cannot be deleted yet; nothing depends on it, and the next checkpoint tries again")


def _is_leftover(path: Path) -> bool:
    name = re.fullmatch(r"\.(unfinished_step_\d{8,}|discarded_(unfinished_)?step_\d{8,}_[0-9a-f]{8})", path.name)
    return name is not None and path.is_dir() and not path.is_symlink()


def set_aside(folder: Path, step: int) -> list[Path]:
    """Rename a run's checkpoints after `step`, from which it is about to be repeated, so that none is the newest one.

    Returns their new folders, which no run deletes, and from which another run may start.
    """
    aside = []
    for path in (path for path in complete(folder) if (step_of(path) or 0) > step):
        names = (f"aside_{path.name}{f'_{number}' if number > 1 else ''}" for number in itertools.count(1))
        aside.append(path.rename(next(free for name in names if not os.path.lexists(free := folder / name))))
    return aside


def _offer(path: Path) -> str:
    """What to do instead of loading a damaged checkpoint."""
    step = step_of(path)
    before = [other for other in complete(path.parent) if step is None or (step_of(other) or 0) < step]
    if not before:
        return "; there is no checkpoint before it"
    return f"; take the one before it, {before[-1]} (in training, --run.resume {before[-1]})"
