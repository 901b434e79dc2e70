"""Time and speed, on a clock that the test winds."""

from types import SimpleNamespace

import pytest
import torch

from mup_lightning.callbacks import throughput as module
from mup_lightning.callbacks.throughput import Throughput, measured_peak
from mup_lightning.config.schema import TrainerConfig


def test_points_are_of_the_interval_and_of_the_mean_without_the_first_step_and_pauses(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    throughput, logged = Throughput(10, TrainerConfig(log_every=2, peak_flops=100.0), 6.0), {}
    logger = SimpleNamespace(log_metrics=lambda values, step: logged.update({step: values}))
    trainer = SimpleNamespace(
        max_steps=6,
        logger=logger,
        loggers=[logger],
        strategy=SimpleNamespace(reduce=lambda value, reduce_op: 4 * value),  # over four processes
    )
    throughput.on_train_start(trainer, SimpleNamespace(device=torch.device("cpu")))
    assert throughput.tokens_per_second == 0.0
    for step, seconds in enumerate((9.0, 1.0, 2.0, 2.0, 1.0, 4.0), start=1):
        clock.now += seconds
        throughput.on_step_end(trainer, None, step)
        with throughput.paused():
            clock.now += 7.0
    for tag, wanted in (
        ("step_seconds", {2: 1.0, 4: 2.0, 6: 2.5}),
        ("tokens_per_second", {2: 10.0, 4: 5.0, 6: 4.0}),
        ("tokens_per_second/mean", {2: 10.0, 4: 6.0, 6: 5.0}),
        ("mfu", {2: 0.15, 4: 0.075, 6: 0.06}),
    ):
        assert {step: values[f"train/{tag}"] for step, values in logged.items()} == pytest.approx(wanted), tag
    assert (throughput.steps, throughput.seconds) == (5, pytest.approx(10.0))


def test_the_measured_peak_is_what_a_product_takes(monkeypatch):
    """Every product takes 2 ms, but the third one 1 ms."""
    calls = []

    class Timer(module.Timer):
        def blocked_autorange(self, min_run_time):
            self.timeit(3)
            return SimpleNamespace(times=[0.002, 0.002, 0.001, 0.002])

    monkeypatch.setattr(module, "Timer", Timer)
    monkeypatch.setattr(module.torch, "mm", lambda first, second, out: calls.append((first.shape, first.dtype)))
    measured_peak.cache_clear()
    peak = measured_peak(torch.device("cpu"), "bf16")
    measured_peak.cache_clear()
    assert peak == pytest.approx(2 * 1024**3 / 0.001)
    assert set(calls) == {((1024, 1024), torch.bfloat16)}
