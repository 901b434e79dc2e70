"""What a user puts beside checkpoints is the user's: never deleted, renamed, counted, or taken for the run's own."""

import os
import shutil
from pathlib import Path

import pytest

from mup_lightning.errors import UserError
from mup_lightning.training import checkpoint as checkpoints
from mup_lightning.training.evaluate import evaluate
from mup_lightning.training.run import RunFolder
from mup_lightning.training.train import train
from tests.training.test_writers import Hook, tree

NAMES = """
    step_best step_final step_4 step_000000004 step_99999999 step_00000004.bak .unfinished_notes .unfinished_step_best
    .discarded_step_1 aside_mine zzz step_00000004(copy)
""".split()
"""Names of copies of step 4. The form of step_99999999 is the program's own, but its content is not of that step."""


def test_copies_made_while_it_trains_stay_and_count_for_nothing(tiny):
    changes = {"trainer.checkpoint_every": 2, "trainer.keep_checkpoints": 2, "schedule.warmup_steps": 1}
    folder = RunFolder(tiny()).checkpoints
    own = folder / "step_00000004"
    links = {"step_00000098": own, "step_00000099": folder / "nowhere", "step_last": own}

    def copy():
        for name in NAMES:
            shutil.copytree(own, folder / name)
        for name, target in links.items():
            (folder / name).symlink_to(target, target_is_directory=True)
        (folder / "step_00000097").write_text("notes")
        shutil.copy(own / "rank_00000.safetensors", folder / "step_best" / "rank_00000 (copy).safetensors")

    result = train(tiny(**changes), callbacks=[Hook(5, copy)])
    kept = ["step_00000008", "step_00000010"]
    everything = {*kept, *NAMES, *links, "step_00000097"}
    assert Path(result.checkpoint).name == kept[-1]
    assert {path.name for path in folder.iterdir()} == everything
    assert [path.name for path in checkpoints.complete(folder)] == kept
    before = {name: tree(folder / name) for name in NAMES}

    again = train(tiny(**changes, **{"run.resume": "last", "trainer.max_steps": 12}))
    assert again.first_step == 10
    back = train(tiny(**changes, **{"run.resume": str(folder / "step_00000010"), "trainer.max_steps": 14}))
    assert back.first_step == 10
    everything = everything - set(kept) | {"step_00000012", "step_00000014", "aside_step_00000012"}
    assert {path.name for path in folder.iterdir()} == everything
    assert before == {name: tree(folder / name) for name in NAMES}
    assert evaluate(folder.parent)["step"] == 14
    assert evaluate(folder / "step_best")["validation_loss"] != evaluate(folder.parent)["validation_loss"]

    for name in ("step_best", "step_99999999"):
        with pytest.raises(UserError, match=rf"{name} is a copy or a link.*--run.name NAME.*name step_00000004"):
            train(tiny(**changes, **{"run.resume": str(folder / name)}))
    fork = tiny(**changes, **{"run.resume": str(folder / "step_best"), "run.name": "fork"})
    assert train(fork).first_step == 4


def test_a_checkpoint_that_its_run_deletes_while_it_is_read_is_not_called_damaged(tiny):
    checkpoint = checkpoints.read(Path(train(tiny(**{"trainer.max_steps": 4})).checkpoint))
    shutil.rmtree(checkpoint.path)
    with pytest.raises(UserError, match=r"step_00000004 is gone: its run goes on, and has deleted it; repeat"):
        checkpoints.verify(checkpoint)


@pytest.mark.parametrize("kind", ["file", "link", "copy"])
def test_what_has_the_name_of_the_next_checkpoint_is_in_the_way_and_stays(tiny, kind):
    folder = RunFolder(tiny()).checkpoints
    taken = folder / "step_00000008"

    def take():
        if kind == "copy":
            shutil.copytree(folder / "step_00000004", taken)
        else:
            taken.symlink_to(folder / "step_00000004") if kind == "link" else taken.write_text("notes")

    with pytest.raises(UserError, match=rf"{taken} is not .*move it away"):
        train(tiny(), callbacks=[Hook(6, take)])
    assert os.path.lexists(taken)
    assert [path.name for path in checkpoints.complete(folder)] == ["step_00000004"]
    taken.rename(folder / "mine")
    assert train(tiny(**{"run.resume": "last"})).first_step == 4
