"""How soon a step must end once the job has been told to: known from the steps before it, and not from the first."""

from types import SimpleNamespace

import pytest

from mup_lightning import signals
from mup_lightning.callbacks import step as stopping
from mup_lightning.callbacks.step import StepCallback, Stopping
from mup_lightning.training import saving
from mup_lightning.training.module import GPT2Module
from mup_lightning.training.train import train


@pytest.fixture
def clock(monkeypatch):
    """Seconds, as a list of one; no deadline is set."""
    now = [0.0]
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(signals, "_deadline", None)
    return now


def test_the_first_step_says_nothing_of_how_long_a_step_may_take(monkeypatch, clock):
    """It compiles and connects: five times as long would be minutes, and SLURM kills half a minute after TERM."""
    expected = []
    monkeypatch.setattr(stopping.signals, "expect", expected.append)
    trainer = SimpleNamespace(strategy=SimpleNamespace(reduce_boolean_decision=lambda decision, all: decision))
    callback = Stopping()
    for seconds in (60.0, 0.5, 2.0, 1.0):
        callback.on_step_start(trainer, None, 1)
        clock[0] += seconds
        callback.on_step_end(trainer, None, 1)
    assert expected == [None, None, 7.5, 15.0]


def test_what_is_done_unhurried_puts_off_what_is_expected(clock):
    signals.expect(7.0)
    clock[0] = 1.0
    with signals.unhurried():
        assert signals._deadline is None
        clock[0] = 100.0
    assert signals._deadline == 106.0
    with pytest.raises(OSError, match="disk"), signals.unhurried():
        raise OSError("the disk is full")
    assert signals._deadline is None


class Exchanges(StepCallback):
    """Keeps, of every exchange of numbers, in which step it is, and whether its process waits for ever."""

    def __init__(self):
        self.step, self.seen = 0, []

    def on_train_start(self, trainer, pl_module):
        trainer.strategy.reduce = self.noted("exchange", trainer.strategy.reduce)

    def on_step_start(self, trainer, module, step):
        self.step = step

    def noted(self, where, original):
        def noted(*arguments, **options):
            self.seen.append((self.step, where, signals._deadline is None))
            return original(*arguments, **options)

        return noted


def test_no_exchange_of_a_step_waits_for_ever_but_validation_and_saving_do(tiny, monkeypatch):
    """Of two processes, one may be gone in any of them."""
    monkeypatch.setenv(signals.VARIABLE, "3")
    monkeypatch.setattr(signals, "_deadline", None)
    exchanges = Exchanges()
    monkeypatch.setattr(GPT2Module, "validation_sums", exchanges.noted("validation", GPT2Module.validation_sums))
    monkeypatch.setattr(saving.checkpoints, "seal", exchanges.noted("saving", saving.checkpoints.seal))
    train(tiny(**{"trainer.log_every": 1, "trainer.spectral_norms_every": 3}), callbacks=[exchanges])
    later = [(where, for_ever) for step, where, for_ever in exchanges.seen if step > 2]
    # Losses in all steps and spectral norms in every third; the two validations add up their sums.
    assert later.count(("exchange", False)) == 8 + 3
    assert later.count(("exchange", True)) == later.count(("validation", True)) == 2
    assert set(later) == {("exchange", False), ("exchange", True), ("validation", True), ("saving", True)}
    assert signals._deadline is None
