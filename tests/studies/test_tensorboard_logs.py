"""The reader gives back what TensorBoard's writers wrote."""

from pathlib import Path

import pytest
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from mup_lightning.errors import UserError
from mup_lightning.studies.features.tensorboard_logs import read_scalars
from tests.studies.conftest import write_events


def test_returns_what_was_written(tmp_path: Path) -> None:
    scalars = {"a": [(0, 1.5), (10, 2.5)], "b/c": [(3, -0.25)]}
    write_events(tmp_path, scalars)
    assert read_scalars(tmp_path) == scalars


def test_nothing_is_thinned(tmp_path: Path) -> None:
    curve = [(step, float(step)) for step in range(12_000)]
    write_events(tmp_path, {"a": curve})
    assert read_scalars(tmp_path) == {"a": curve}


def test_what_a_resumed_run_took_back_is_left_out(tmp_path: Path) -> None:
    write_events(tmp_path, {"a": [(0, 1.0), (1, 2.0), (2, 3.0), (3, 4.0)]}, suffix=".1")
    writer = EventFileWriter(str(tmp_path), filename_suffix=".2")
    writer.add_event(Event(step=2, session_log=SessionLog(status=SessionLog.START)))
    writer.close()
    write_events(tmp_path, {"a": [(1, 20.0), (2, 30.0)]}, suffix=".3")
    assert read_scalars(tmp_path) == {"a": [(0, 1.0), (1, 20.0), (2, 30.0)]}


def test_a_running_runs_half_written_event_is_left_out(tmp_path: Path) -> None:
    write_events(tmp_path, {"a": [(0, 1.0), (1, 2.0)]})
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-5])
    assert read_scalars(tmp_path) == {"a": [(0, 1.0)]}


@pytest.mark.parametrize("made", [True, False])
def test_a_folder_without_events(tmp_path: Path, made: bool) -> None:
    folder = tmp_path / "tensorboard"
    if made:
        folder.mkdir()
    with pytest.raises(UserError, match="no TensorBoard event files"):
        read_scalars(folder)
