"""One folder per run: resolved configuration, TensorBoard events, checkpoints, result."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from mup_lightning.config.schema import Config
from mup_lightning.errors import UserError
from mup_lightning.files import make_folder
from mup_lightning.training import checkpoint as checkpoints


class RunFolder:
    """The places in a run's folder.

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
        """Refuse to start a new run where another one lives.

        Raises:
            UserError: the folder holds a run.
        """
        if self.config_file.exists() or checkpoints.complete(self.checkpoints):
            saved = checkpoints.complete(self.checkpoints)
            state = f"a run with a checkpoint at {saved[-1].name}" if saved else "a run without a checkpoint"
            raise UserError(
                f"{self.path} already holds {state}; continue it (--run.resume last, or make train RESUME=last), "
                f"give the new run another name (--run.name NAME, or RUN=NAME), or remove the folder"
            )

    def has_logs(self) -> bool:
        """Whether TensorBoard would find something of this run."""
        return any(self.tensorboard.glob("*tfevents*"))

    def logged_at(self, step: int) -> set[str]:
        """Tags of the points that TensorBoard has of one step: those that no later part of the run has taken back."""
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

    def save_config(self, config: Config, step: int) -> None:
        """Save the resolved configuration; that of a resumed run goes beside the first one's."""
        make_folder(self.path, "--run.root, --run.name")
        file = self.config_file if not self.config_file.exists() else self.path / f"config.resumed_at_{step:08d}.yaml"
        _write(file, yaml.safe_dump(plain(asdict(config)), sort_keys=False))

    def finished_result(self) -> dict[str, Any] | None:
        """What result.json says, if the run went to its end."""
        if not self.result_file.is_file():
            return None
        try:
            result: dict[str, Any] = json.loads(self.result_file.read_text())
            return result if result["finished"] else None
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{self.result_file} is damaged; remove it, and repeat this command") from None

    def save_result(self, result: dict[str, Any]) -> None:
        """Write result.json."""
        _write(self.result_file, json.dumps(result, indent=1) + "\n")


def _write(file: Path, text: str) -> None:
    """Whole or not at all."""
    unfinished = file.with_suffix(".unfinished")
    unfinished.write_text(text)
    unfinished.replace(file)


def plain(value: Any) -> Any:
    """Nested dicts, lists and scalars only, as YAML and JSON give them back: tuples become lists."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value
