"""`run.resume auto`: what a job that SLURM may start again at any time asks for."""

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mup_lightning.callbacks.curves import Curves
from mup_lightning.errors import UserError
from mup_lightning.training.train import train


def crash_at(monkeypatch, step):
    original = Curves.on_step_end

    def on_step_end(self, trainer, module, now):
        original(self, trainer, module, now)
        if now == step:
            raise ZeroDivisionError

    monkeypatch.setattr(Curves, "on_step_end", on_step_end)


@pytest.mark.parametrize(("step", "first_step"), [(3, 0), (7, 4)])
def test_a_job_starts_goes_on_and_ends_with_the_same_command(tiny, monkeypatch, step, first_step):
    straight = train(tiny(**{"run.name": "straight"}))
    changes = {"run.resume": "auto", "trainer.log_every": 1}
    with monkeypatch.context() as patch:
        crash_at(patch, step)
        with pytest.raises(ZeroDivisionError):
            train(tiny(**changes))
    result = train(tiny(**changes))
    assert (result.first_step, result.steps) == (first_step, 10)
    assert result.validation_loss == straight.validation_loss
    events = EventAccumulator(result.tensorboard, size_guidance={"scalars": 0}).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 11))


def test_a_run_that_is_done_is_not_trained_again(tiny):
    result = train(tiny(**{"run.resume": "auto"}))
    assert train(tiny(**{"run.resume": "auto"})) == result


@pytest.mark.parametrize("text", ["{", "[]", b"\xff"])
def test_a_damaged_result_is_named(tiny, text):
    result = Path(train(tiny(**{"run.resume": "auto"})).checkpoint).parents[1] / "result.json"
    result.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=r"result\.json is damaged; remove it, and repeat this command"):
        train(tiny(**{"run.resume": "auto"}))


def test_a_run_killed_between_its_last_checkpoint_and_its_result_still_ends_well(tiny):
    config = tiny(**{"run.resume": "auto"})
    first = train(config)
    (Path(config.run.root) / "tiny" / "result.json").unlink()
    again = train(tiny(**{"run.resume": "auto"}))
    assert again.finished
    assert again.steps == 10
    assert again.checkpoint == first.checkpoint
    assert again.validation_loss is None
