"""How runs are read and arranged for drawing."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from mup_lightning.callbacks.feature_norms import tag
from mup_lightning.errors import UserError
from mup_lightning.model.taps import LAYER_POINTS, POINTS
from mup_lightning.studies.features import feature_figures
from mup_lightning.studies.features.report import Panel, compare, other_differences, read_run
from tests.studies.conftest import norm, write_events

MakeRun = Callable[..., Path]


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
    assert set(feature_figures.WHAT) == set(POINTS)
    assert set(feature_figures.OVERVIEW) <= set(POINTS)


def test_a_row_for_width_and_a_row_for_depth(make_run: MakeRun) -> None:
    shapes = [(256, 2), (64, 2), (128, 2), (64, 8), (64, 4)]
    runs = [read_run(make_run(f"mup-{w}x{d}", w, d)) for w, d in shapes]
    runs += [read_run(make_run(f"sp-{w}x{d}", w, d, parametrization="sp")) for w, d in shapes]
    by_width, by_depth = compare(runs, "residual")
    assert (by_width.varying, by_width.fixed, by_width.sizes) == ("width", "depth 2", ["64", "128", "256"])
    assert (by_depth.varying, by_depth.fixed, by_depth.sizes) == ("depth", "width 64", ["2", "4", "8"])
    for row in (by_width, by_depth):
        assert [panel.parametrization for panel in row.panels] == ["SP", "recipe, k ≥ 2"]
    assert by_width.panels[0].lines == [(str(w), [(s, norm(w, 1, s)) for s in range(3)]) for w in (64, 128, 256)]
    assert by_depth.panels[1].lines == [(str(d), [(s, norm(64, d - 1, s)) for s in range(3)]) for d in (2, 4, 8)]


def test_branch_depth_makes_panels(make_run: MakeRun) -> None:
    runs = [read_run(make_run(f"{w}-{k}", w, branch_depth=k)) for w in (64, 128) for k in (3, 2, 1)]
    (row,) = compare(runs, "logits")
    assert [(panel.parametrization, len(panel.lines)) for panel in row.panels] == [
        ("recipe, k = 1", 2),
        ("recipe, k ≥ 2", 4),
    ]


def test_runs_outside_the_rows(make_run: MakeRun) -> None:
    runs = [read_run(make_run(f"{w}x{d}", w, d)) for w, d in ((64, 2), (128, 2), (256, 4))]
    (row,) = compare(runs, "residual")
    assert [run.name for run in row.runs] == ["64x2", "128x2"]


def test_a_row_compares_sizes_of_one_parametrization(make_run: MakeRun) -> None:
    runs = [read_run(make_run(name, w, d)) for name, w, d in (("a", 64, 2), ("b", 64, 4))]
    runs.append(read_run(make_run("sp", 128, 2, parametrization="sp")))
    (row,) = compare(runs, "residual")
    assert (row.varying, [run.name for run in row.runs]) == ("depth", ["a", "b"])


def test_width_and_depth_together(make_run: MakeRun) -> None:
    runs = [read_run(make_run(f"{w}x{d}", w, d)) for w, d in ((128, 4), (64, 2))]
    (row,) = compare(runs, "residual")
    assert (row.varying, row.fixed, row.sizes) == ("width × depth", "", ["64 × 2", "128 × 4"])


def test_spread_at_the_last_common_step() -> None:
    curves = [("64", [(0, 1.0), (2, 2.0), (4, 9.0)]), ("128", [(0, 1.0), (2, 6.0)]), ("256", [(2, 3.0)])]
    assert Panel("SP", curves).spread() == (2, 3.0)
    assert Panel("SP", curves[:1]).spread() is None
    assert Panel("SP", [("64", [(0, 1.0)]), ("128", [(1, 1.0)])]).spread() is None


def test_what_else_differs_is_known(make_run: MakeRun) -> None:
    first, second = read_run(make_run("a")), read_run(make_run("b", 128, 4, parametrization="sp"))
    assert other_differences([first, second]) == []
    assert other_differences([first, read_run(make_run("c", lr=0.25))]) == ["recipe.lr"]


def test_a_folder_that_is_no_run(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("first")
    with pytest.raises(UserError, match=r"is no run.*expected a folder such as runs/"):
        read_run(tmp_path / "missing")
    with pytest.raises(UserError, match="it holds the runs first: name those"):
        read_run(tmp_path)


def test_a_damaged_or_foreign_config(make_run: MakeRun) -> None:
    file = make_run("first") / "config.yaml"
    file.write_text("model: [")
    with pytest.raises(UserError, match=r"config\.yaml is damaged"):
        read_run(file.parent)
    file.write_text(yaml.safe_dump({"modle": {}}))
    with pytest.raises(UserError, match=r"config\.yaml: unknown configuration keys modle"):
        read_run(file.parent)


def test_no_feature_norms(make_run: MakeRun) -> None:
    folder = make_run("first")
    for file in (folder / "tensorboard").iterdir():
        file.unlink()
    write_events(folder / "tensorboard", {"train/loss": [(1, 3.0)]})
    with pytest.raises(UserError, match=r"no feature norms.*trainer\.feature_norms_every"):
        read_run(folder)


def test_an_unknown_point_or_equal_sizes(make_run: MakeRun) -> None:
    runs = [read_run(make_run("a")), read_run(make_run("b"))]
    with pytest.raises(UserError, match="no point 'mpl'; it has attention_scaled, embedding, logits, residual"):
        compare(runs, "mpl")
    with pytest.raises(UserError, match="nothing varies: all runs have width 64 and depth 2"):
        compare(runs, "residual")
