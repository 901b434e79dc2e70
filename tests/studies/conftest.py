"""Small run folders: a config.yaml and event files with known feature norms."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from mup_lightning.config.schema import Config
from mup_lightning.training.run import plain


def write_events(folder: Path, scalars: dict[str, list[tuple[int, float]]], suffix: str = "") -> None:
    """One event file with these scalars."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = EventFileWriter(str(folder), filename_suffix=suffix)
    for tag, curve in scalars.items():
        for step, value in curve:
            writer.add_event(Event(step=step, summary=Summary(value=[Summary.Value(tag=tag, simple_value=value)])))
    writer.close()


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """make_run(name, width, depth, **recipe): a run whose norms follow from its size, see `norm`."""

    def make(name: str, width: int = 64, depth: int = 2, steps: int = 3, lr: float = 0.5, **recipe: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        values = {"model": {"width": width, "depth": depth}, "recipe": {"lr": lr, **recipe}}
        (folder / "config.yaml").write_text(yaml.safe_dump(plain(asdict(Config.from_plain(values)))))
        scalars = {"train/loss": [(1, 3.0)]}
        for point in ("embedding", "logits"):
            scalars[f"features/{point}"] = [(step, 1.0) for step in range(steps)]
        for point in ("attention_scaled", "residual"):
            for layer in range(depth):
                curve = [(step, norm(width, layer, step)) for step in range(steps)]
                scalars[f"features/{point}/layer_{layer:03d}"] = curve
        write_events(folder / "tensorboard", scalars)
        return folder

    return make


def norm(width: int, layer: int, step: int) -> float:
    """An RMS norm that float32 holds exactly."""
    return width * (layer + 1) + step / 4
