"""`mup-lightning anneal`: branches of a trunk equal whole runs, are run once, and what no branch can be made of."""

import json
import shutil
from pathlib import Path

import pytest

from mup_lightning.cli.main import main
from mup_lightning.files import read_json, write_json
from mup_lightning.studies.sweep import run as sweep_run
from mup_lightning.studies.transfer.losses import read_losses
from mup_lightning.training.train import train
from tests.conftest import tiny_config
from tests.training.test_resume import assert_equal

TRUNK = {
    "model.width": 16,
    "model.dropout": 0.1,
    "data.val_tokens": 512,
    "recipe.time_rule": "sde",
    "recipe.base_batch": 256,
    "recipe.base_tokens": 1024,
    "schedule.kind": "constant",
    "schedule.warmup_share": 0.15,
    "trainer.max_steps": 15,
    "trainer.checkpoint_every": 4,
    "trainer.keep_checkpoints": 9,
}
"""2 steps of warm-up, checkpoints after 4, 8, 12 and 15."""


@pytest.fixture(scope="module")
def trunk(corpus, tmp_path_factory):
    """A finished trunk's folder."""
    return Path(train(tiny_config(corpus, tmp_path_factory.mktemp("runs"), **TRUNK)).checkpoint).parents[1]


def anneal(trunk, *words):
    return main(["anneal", str(trunk), *map(str, words), "--workers", "0"])


def test_branches_are_whole_runs_and_each_is_run_once(trunk, corpus, tmp_path, monkeypatch, capsys):
    """Ctrl-C during the second branch: the same command runs that one alone."""
    out, own, ran = tmp_path / "out", sweep_run.train, []

    def interrupted(config, **options):
        ran.append(config.trainer.max_steps)
        if len(ran) == 2:
            (Path(config.run.root) / config.run.name).mkdir(parents=True)  # as a killed one leaves it
            raise KeyboardInterrupt
        return own(config, **options)

    monkeypatch.setattr(sweep_run, "train", interrupted)
    words = ("--steps", "20,6,12", "--decay", 0.25, "--floor", 0, "--out", out)
    assert anneal(trunk, *words) == 130
    assert "stopped: 1 of 3 are finished; the same command goes on" in capsys.readouterr().out
    assert anneal(trunk, *words) == 0
    printed = capsys.readouterr().out
    assert anneal(trunk, *words) == 0
    assert "3 configurations, 3 of them finished before" in capsys.readouterr().out
    assert sorted(ran) == sorted([6, 12, 20, ran[1]])
    rows = {int(row["steps"]): row for row in read_losses(out).to_dict("records")}
    assert list(rows) == [6, 12, 20]
    whole = {"schedule.kind": "wsd", "schedule.decay": 0.25, "schedule.floor": 0, "schedule.warmup_steps": 2}
    for steps, first in ((6, 4), (12, 8), (20, 15)):
        changes = whole | {"recipe.tokens": 15 * 128, "trainer.max_steps": steps, "run.name": f"whole-{steps}"}
        straight = train(tiny_config(corpus, tmp_path, **TRUNK | changes))
        (folder,) = (out / "runs").glob(f"steps={steps}-*")
        result = json.loads((folder / "result.json").read_text())
        assert (result["first_step"], result["validation_loss"]) == (first, straight.validation_loss)
        assert_equal(straight.checkpoint, result["checkpoint"])
        assert (folder / "config.yaml").exists()
        assert list((folder / "tensorboard").glob("*tfevents*"))
        row = rows[steps]
        assert (row["axis"], int(row["size"]), row["loss"]) == ("tokens", steps * 128, straight.validation_loss)
        assert f"{steps:<5}  {first:<9}  {steps * 128:<6,}  {row['loss']:.4f}           {folder}" in printed


@pytest.mark.parametrize(
    ("schedule", "steps", "message"),
    [
        ({}, "8,2", "--steps 2: its decay begins after step 1, and the trunk's warm-up takes 2 steps; anneal more"),
        (
            {},
            4,
            "its decay begins after step 3, and {} has checkpoints of later steps alone (4, 8, 12, 15); trainer.ch",
        ),
        ({}, 24, "--steps 24: its decay begins after step 19, and {} has got to step 15; train the trunk on"),
        ({"kind": "cosine"}, 10, "after step 8, but the trunk's (cosine) began after step 2; expected schedule.kind"),
        ({"kind": "linear"}, 24, "after step 19, but the trunk's (linear) began after step 2; expected schedule.kind"),
        ({"kind": "wsd", "decay": 0.4}, 15, "after step 12, but the trunk's (wsd) began in step 10, at 0.8"),
    ],
)
def test_what_has_no_branch_is_one_line(trunk, tmp_path, capsys, schedule, steps, message):
    folder = tmp_path / "runs" / "it"
    shutil.copytree(trunk, folder)
    for marker in folder.glob("checkpoints/*/checkpoint.json"):
        content = read_json(marker, "")
        content["config"]["schedule"] |= schedule
        write_json(marker, content)
    assert anneal(folder, "--steps", steps) == 1
    error = capsys.readouterr().err
    assert message.format(folder) in error
    assert error.count("\n") == 1
    assert [path.name for path in folder.parent.iterdir()] == ["it"]


def test_what_is_no_trunk_is_one_line(tmp_path, capsys):
    for folder, message in ((tmp_path / "nowhere", "does not exist"), (tmp_path, "has no complete checkpoint")):
        assert anneal(folder, "--steps", 8) == 1
        assert f"{folder} {message}; expected the folder of the trunk" in capsys.readouterr().err
    assert anneal(tmp_path, "--steps", "") == 1
    assert "expected one number of steps or more, such as 400,800,1600" in capsys.readouterr().err
    assert anneal(tmp_path) == 2
