"""`mup-lightning figure` from end to end, on made-up runs."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mup_lightning.cli.main import main
from mup_lightning.config.load import build, config_parser, parse
from mup_lightning.optim.schedule import warmup_cosine
from mup_lightning.studies.features.feature_figures import STEPS_SHOWN, shown_steps
from mup_lightning.studies.features.report import read_run

MakeRun = Callable[..., Path]
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("point", [[], ["--point", "residual"], ["--point", "logits"]])
def test_one_run(make_run: MakeRun, point: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run("first", steps=30)
    assert main(["figure", str(run), *point]) == 0
    assert (run / "feature_norms.png").read_bytes().startswith(PNG)
    assert f"wrote {run}/feature_norms.png" in capsys.readouterr().out


def test_several_runs(make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [make_run(f"{p}-{w}", w, parametrization=p) for p in ("sp", "mup") for w in (64, 128)]
    runs += [make_run("deep", 64, 4, parametrization="mup"), make_run("alone", 256, 8, lr=0.25)]
    out = tmp_path / "out.png"
    assert main(["figure", *map(str, runs), "--out", str(out)]) == 0
    assert out.read_bytes().startswith(PNG)
    output = capsys.readouterr()
    assert "SP, width 64 to 128, depth 2: at step 2 the largest norm is 2 times the smallest" in output.out
    assert "not drawn, because no other run shares their width or depth: alone" in output.err
    assert "the runs also differ in recipe.lr" in output.err


def test_a_row_that_lacks_a_parametrization(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run(f"sp-{w}", w, parametrization="sp") for w in (64, 128)]
    runs += [make_run(f"mup-{d}", 64, d) for d in (2, 4)]
    assert main(["figure", *map(str, runs), "--out", str(tmp_path / "out.svg")]) == 0
    assert "<svg" in (tmp_path / "out.svg").read_text()


def test_many_steps_are_thinned_evenly(make_run: MakeRun) -> None:
    steps = shown_steps(read_run(make_run("first", steps=100)))
    assert (len(steps), steps[0], steps[-1]) == (STEPS_SHOWN, 0, 99)
    assert shown_steps(read_run(make_run("second", steps=1))) == [0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "picture.jpeg"], "expected a file name that ends in .png"),
        (["--out", "nowhere/picture.png"], "there is no folder nowhere"),
        (["--point", "mpl"], "no point 'mpl'"),
    ],
)
def test_mistakes_are_one_line(
    make_run: MakeRun, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["figure", str(make_run("first")), *options]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_readmes_picture_trains_at_a_constant_rate() -> None:
    recipes = Path(__file__).resolve().parents[2] / "recipes"
    parser = config_parser("test", "", "")
    files = ("gpt2.yaml", "experiment/readme_picture.yaml")
    config = build(parser, parse(parser, [item for file in files for item in ("-c", str(recipes / file))]))
    factor = warmup_cosine(config.schedule, config.recipe.lr, config.trainer.max_steps)
    assert {factor(step) for step in range(config.trainer.max_steps)} == {1.0}
    assert (config.trainer.feature_norms_every, config.recipe.parametrization) == (1, "mup")


def test_drawing_needs_no_torch(make_run: MakeRun) -> None:
    code = (
        "import sys; from mup_lightning.cli.main import main; main(sys.argv[1:]); "
        "sys.exit(' '.join({'torch', 'lightning', 'tensorflow'} & set(sys.modules)) or 0)"
    )
    subprocess.run([sys.executable, "-c", code, "figure", str(make_run("first"))], check=True)


def test_a_run_that_is_not_there_is_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its folder is where the picture would be, but that is not what was typed."""
    assert main(["figure", str(tmp_path / "typo")]) == 1
    assert f"{tmp_path / 'typo'} is no run: there is no" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.yaml").touch()
    assert main(["figure", str(tmp_path / "empty")]) == 1
    assert "config.yaml: the configuration is None; expected keys and values" in capsys.readouterr().err
