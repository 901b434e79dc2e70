"""A run that goes back to an older checkpoint of its own."""

from pathlib import Path

import pytest

from mup_lightning.errors import UserError
from mup_lightning.training import checkpoint as checkpoints
from mup_lightning.training.train import train


def test_what_is_made_anew_from_an_older_checkpoint_is_not_taken_for_the_older_one(tiny, capsys):
    """The later checkpoints are of a run that is no more: none is the newest one, nor does any push out a new one."""
    changes = {"trainer.checkpoint_every": 2, "trainer.keep_checkpoints": 5, "schedule.warmup_steps": 1}
    folder = Path(train(tiny(**changes)).checkpoint).parent
    old = (folder / "step_00000010" / checkpoints.MARKER_FILE).read_bytes()
    changes |= {"run.resume": str(folder / "step_00000004"), "trainer.keep_checkpoints": 2, "trainer.max_steps": 8}
    again = train(tiny(**changes))
    assert "made anew from step 4 on; its later checkpoints are kept aside: " in capsys.readouterr().out
    assert Path(again.checkpoint) == checkpoints.newest(folder).path == folder / "step_00000008"
    assert [path.name for path in checkpoints.complete(folder)] == ["step_00000006", "step_00000008"]
    aside = sorted(path.name for path in folder.glob("aside_*"))
    assert aside == ["aside_step_00000006", "aside_step_00000008", "aside_step_00000010"]
    assert (folder / aside[-1] / checkpoints.MARKER_FILE).read_bytes() == old
    checkpoints.verify(checkpoints.read(folder / aside[-1]))
    train(tiny(**changes | {"run.resume": str(folder / "step_00000006")}))
    assert (folder / "aside_step_00000008_2").exists()

    longer = changes | {"run.resume": str(folder / aside[-1]), "trainer.max_steps": 12}
    with pytest.raises(UserError, match=r"aside_step_00000010 was set aside .*as another one \(--run\.name NAME\)"):
        train(tiny(**longer))
    assert train(tiny(**longer, **{"run.name": "fork"})).first_step == 10
