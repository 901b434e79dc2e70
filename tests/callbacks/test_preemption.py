"""How soon a step must end once the job has been told to: known from the steps before it, and not from the first."""

from types import SimpleNamespace

from mup_lightning.callbacks import preemption
from mup_lightning.callbacks.preemption import Preemption


def test_the_first_step_says_nothing_of_how_long_a_step_may_take(monkeypatch):
    """It compiles and connects: five times as long would be minutes, and SLURM kills half a minute after TERM."""
    clock, expected = [0.0], []
    monkeypatch.setattr(preemption.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(preemption.stop_signals, "expect", expected.append)
    trainer = SimpleNamespace(strategy=SimpleNamespace(reduce_boolean_decision=lambda decision, all: decision))
    callback = Preemption()
    for seconds in (60.0, 0.5, 2.0, 1.0):
        callback.on_step_start(trainer, None, 1)
        clock[0] += seconds
        callback.on_step_end(trainer, None, 1)
    assert expected == [None, None, None, None, 7.5, None, 15.0, None]
