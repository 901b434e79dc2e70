"""`mup-lightning figure`: runs are read from TensorBoard's files, arranged, and drawn."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from mup_lightning.callbacks.norms import tag
from mup_lightning.cli.main import main
from mup_lightning.errors import UserError
from mup_lightning.model.taps import LAYER_POINTS, POINTS
from mup_lightning.studies.features.report import (
    OVERVIEW,
    STEPS_SHOWN,
    WHAT,
    compare,
    other_differences,
    read_run,
    read_scalars,
    shown_steps,
    spread,
)
from tests.studies.conftest import norm, write_events

MakeRun = Callable[..., Path]


def test_nothing_is_thinned(tmp_path: Path) -> None:
    scalars = {"a": [(step, float(step)) for step in range(12_000)], "b/c": [(3, -0.25)]}
    write_events(tmp_path, scalars)
    assert read_scalars(tmp_path) == scalars


def test_what_a_resumed_run_took_back_is_left_out(tmp_path: Path) -> None:
    write_events(tmp_path, {"a": [(0, 1.0), (1, 2.0), (2, 3.0), (3, 4.0)]}, suffix=".1")
    writer = EventFileWriter(str(tmp_path), filename_suffix=".2")
    writer.add_event(Event(step=2, session_log=SessionLog(status=SessionLog.START)))
    writer.close()
    write_events(tmp_path, {"a": [(1, 20.0), (2, 30.0)]}, suffix=".3")
    # Files of one second are read in the order of a counter, as text: 10 before 9.
    for file in list(tmp_path.iterdir()):
        file.rename(tmp_path / f"events.out.tfevents{file.suffix}")
    assert read_scalars(tmp_path) == {"a": [(0, 1.0), (1, 20.0), (2, 30.0)]}


def test_a_run_is_read_by_point_and_layer(make_run: MakeRun) -> None:
    run = read_run(make_run("first", width=128, depth=3))
    assert (run.name, run.shape) == ("first", (128, 3))
    assert set(run.norms) == {"embedding", "logits", "attention_scaled", "residual"}
    assert run.norms["embedding"] == {None: [(0, 1.0), (1, 1.0), (2, 1.0)]}
    assert run.norms["residual"] == {i: [(step, norm(128, i, step)) for step in range(3)] for i in range(3)}
    assert run.last("residual") == run.norms["residual"][2]
    assert run.last("logits") == run.norms["logits"][None]


def test_tags_are_those_that_training_writes(make_run: MakeRun) -> None:
    folder = make_run("first")
    layers = {point: [0, 1] if point in LAYER_POINTS else [None] for point in POINTS}
    tags = [tag(point, layer) for point in POINTS for layer in layers[point]]
    write_events(folder / "tensorboard", {name: [(7, 1.0)] for name in tags}, suffix=".more")
    assert {point: list(norms) for point, norms in read_run(folder).norms.items()} == layers
    assert {*OVERVIEW, *WHAT} <= set(POINTS)


def shown(row):
    """What is drawn in each panel of a row."""
    panels = row.panels()
    return row.varying, row.fixed, {name: [(row.size(run), run.name) for run in panels[name]] for name in panels}


def test_a_row_for_width_and_a_row_for_depth(make_run: MakeRun) -> None:
    shapes = [(256, 2), (64, 2), (128, 2), (64, 8), (64, 4)]
    runs = [read_run(make_run(f"{p}-{w}x{d}", w, d, parametrization=p)) for p in ("mup", "sp") for w, d in shapes]
    by_width, by_depth = map(shown, compare(runs))
    names = {"SP": "sp", "recipe, k ≥ 2": "mup"}
    widths = {name: [(str(w), f"{p}-{w}x2") for w in (64, 128, 256)] for name, p in names.items()}
    depths = {name: [(str(d), f"{p}-64x{d}") for d in (2, 4, 8)] for name, p in names.items()}
    assert by_width == ("width", ", depth 2", widths)
    assert by_depth == ("depth", ", width 64", depths)


@pytest.mark.parametrize(
    ("shapes", "varying", "fixed", "drawn"),
    [
        (((64, 2), (128, 2), (256, 4)), "width", ", depth 2", ["64", "128"]),
        (((128, 4), (64, 2)), "width × depth", "", ["64 × 2", "128 × 4"]),
    ],
)
def test_runs_that_share_no_line(make_run: MakeRun, shapes, varying, fixed, drawn) -> None:
    (row,) = compare([read_run(make_run(f"{w}x{d}", w, d)) for w, d in shapes])
    assert (row.varying, row.fixed, [row.size(run) for run in row.runs]) == (varying, fixed, drawn)


def test_spread_at_the_last_common_step() -> None:
    curves = [[(0, 1.0), (2, 2.0), (4, 9.0)], [(0, 1.0), (2, 6.0)], [(2, 3.0)]]
    assert spread(curves) == (2, 3.0)
    assert spread(curves[:1]) is None
    assert spread([[(0, 1.0)], [(1, 1.0)]]) is None


def test_what_else_differs_is_known(make_run: MakeRun) -> None:
    first, second = read_run(make_run("a")), read_run(make_run("b", 128, 4, parametrization="sp"))
    assert other_differences([first, second]) == []
    assert other_differences([first, read_run(make_run("c", lr=0.25))]) == ["recipe.lr"]
    second.config.model.parallel = True  # which a run without it does not name
    assert other_differences([first, second]) == ["model.parallel"]


@pytest.mark.parametrize(("steps", "shown"), [(100, STEPS_SHOWN), (1, 1)])
def test_many_steps_are_thinned_evenly(make_run: MakeRun, steps: int, shown: int) -> None:
    found = shown_steps(read_run(make_run("first", steps=steps)))
    assert (len(found), found[0], found[-1]) == (shown, 0, steps - 1)


@pytest.mark.parametrize("point", [[], ["--point", "residual"], ["--point", "logits"]])
def test_one_run(make_run: MakeRun, point: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run("first", steps=30)
    assert main(["figure", str(run), *point]) == 0
    assert (run / "feature_norms.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert f"wrote {run}/feature_norms.png" in capsys.readouterr().out


def test_several_runs(make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [make_run(f"{p}-{w}", w, parametrization=p) for p in ("sp", "mup") for w in (64, 128)]
    runs += [make_run("deep", 64, 4, parametrization="mup"), make_run("alone", 256, 8, lr=0.25)]
    assert main(["figure", *map(str, runs), "--out", str(tmp_path / "out.svg")]) == 0
    assert "<svg" in (tmp_path / "out.svg").read_text()
    output = capsys.readouterr()
    assert "SP, width 64 to 128, depth 2: at step 2 the largest norm is 2 times the smallest" in output.out
    assert "not drawn, because no other run shares their width or depth: alone" in output.err
    assert "the runs also differ in recipe.lr" in output.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["first", "--out", "picture.jpeg"], "expected a file name that ends in .png"),
        (["first", "--out", "nowhere/picture.png"], "there is no folder nowhere"),
        (["first", "--point", "mpl"], "no point 'mpl'; it has attention_scaled, embedding, logits, residual"),
        (["first", "second"], "nothing varies: all runs have width 64 and depth 2"),
        (["missing"], "missing is not a run, there is no"),
        (["."], "it holds the runs damaged, empty, first, second, strange: name those"),
        (["damaged"], "config.yaml is not valid YAML"),
        (["strange"], "unknown option modle"),
        (["empty"], "no TensorBoard event files"),
    ],
)
def test_mistakes_are_one_line(make_run: MakeRun, tmp_path: Path, capsys, monkeypatch, words, message) -> None:
    for name in ("first", "second", "damaged", "strange", "empty"):
        make_run(name)
    (tmp_path / "damaged" / "config.yaml").write_text("model: [")
    (tmp_path / "strange" / "config.yaml").write_text(yaml.safe_dump({"modle": {"width": 1}}))
    for file in (tmp_path / "empty" / "tensorboard").iterdir():
        file.unlink()
    monkeypatch.chdir(tmp_path)
    assert main(["figure", *words]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_no_feature_norms(make_run: MakeRun) -> None:
    folder = make_run("first")
    for file in (folder / "tensorboard").iterdir():
        file.unlink()
    write_events(folder / "tensorboard", {"train/loss": [(1, 3.0)]})
    with pytest.raises(UserError, match=r"no feature norms.*trainer\.feature_norms_every"):
        read_run(folder)
