"""Time and speed, on a clock that the test winds."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mup_lightning.callbacks import throughput as module
from mup_lightning.callbacks.throughput import Throughput
from mup_lightning.config.schema import TrainerConfig
from mup_lightning.errors import UserError
from mup_lightning.plan.plan import plan
from mup_lightning.studies.features.runs import read_scalars
from mup_lightning.training.train import train

SILENT = SimpleNamespace(logger=None)


class Clock:
    now = 100.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_everything_between_steps_counts_but_the_first_step_and_pauses(clock):
    throughput = Throughput(tokens_per_step=10)
    assert throughput.tokens_per_second == 0.0
    for seconds, pause in ((50.0, 0.0), (1.0, 7.0), (2.0, 0.0)):
        clock.now += seconds
        throughput.on_step_end(SILENT, None, 1)
        with throughput.paused():
            clock.now += pause
    clock.now += 3.0
    throughput.on_step_end(SILENT, None, 1)
    assert throughput.steps == 3
    assert throughput.seconds == pytest.approx(1.0 + 2.0 + 3.0)
    assert throughput.tokens_per_second == pytest.approx(30 / 6.0)


def test_a_pause_before_the_first_step_is_none(clock):
    throughput = Throughput(1)
    with throughput.paused():
        clock.now += 5.0
    throughput.on_step_end(SILENT, None, 1)
    clock.now += 1.0
    throughput.on_step_end(SILENT, None, 2)
    assert throughput.seconds == pytest.approx(1.0)


def test_points_are_of_the_interval_and_of_the_mean(clock):
    throughput, logged = Throughput(10, every=2, flops_per_token=6.0, peak=100.0), {}
    trainer = SimpleNamespace(
        max_steps=6,
        logger=SimpleNamespace(log_metrics=lambda values, step: logged.update({step: values})),
        strategy=SimpleNamespace(reduce=lambda value, reduce_op: 4 * value),  # of four processes
    )
    throughput.on_train_start(trainer, SimpleNamespace(device=torch.device("cpu")))
    for step, seconds in enumerate((9.0, 1.0, 2.0, 2.0, 1.0, 4.0), start=1):
        clock.now += seconds
        throughput.on_step_end(trainer, None, step)
    assert list(logged) == [2, 4, 6]
    assert [values["train/step_seconds"] for values in logged.values()] == pytest.approx([1.0, 2.0, 2.5])
    assert [values["train/tokens_per_second"] for values in logged.values()] == pytest.approx([10.0, 5.0, 4.0])
    assert [values["train/tokens_per_second/mean"] for values in logged.values()] == pytest.approx([10, 6, 5])
    assert [values["train/mfu"] for values in logged.values()] == pytest.approx([0.15, 0.075, 0.06])


def test_a_run_logs_mfu_by_its_flops_and_the_given_peak(tiny):
    config = tiny(**{"trainer.peak_flops": 1e12, "trainer.log_every": 1})
    result = train(config, progress=False)
    curves = {tag: dict(curve) for tag, curve in read_scalars(Path(result.tensorboard)).items()}
    speeds = curves["train/tokens_per_second"]
    assert list(speeds) == list(range(2, 11))  # the first step is warm-up
    # 6N + 12·L·n·T: 35,328 numbers without the table of positions, depth 2, width 32, context 16.
    numbers = sum(p.parameters for p in plan(config).groups) - 16 * 32
    assert numbers == 256 * 32 + 2 * (12 * 32 * 32 + 13 * 32) + 2 * 32
    for step, speed in speeds.items():
        wanted = (6 * numbers + 12 * 2 * 32 * 16) * speed / 1e12
        assert curves["train/mfu"][step] == pytest.approx(wanted, rel=1e-5)
        assert speed * curves["train/step_seconds"][step] == pytest.approx(8 * 16, rel=1e-5)
    assert curves["train/tokens_per_second/mean"][10] == pytest.approx(result.tokens_per_second, rel=1e-6)


def test_without_a_peak_there_is_no_mfu(tiny):
    curves = read_scalars(Path(train(tiny(**{"trainer.peak_flops": "off"}), progress=False).tensorboard))
    assert "train/mfu" not in curves
    assert "train/step_seconds" in curves


def test_the_measured_peak_is_what_a_product_takes(monkeypatch):
    """On a clock on which every product takes 2 ms, the third one 1 ms."""
    clock, calls = Clock(), []

    def product(first, second, out):
        calls.append((first.shape, first.dtype))
        clock.now += 0.001 if len(calls) == 3 else 0.002

    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(module.torch, "mm", product)
    module.measured_peak.cache_clear()
    try:
        peak = module.measured_peak(torch.device("cpu"), "bf16")
        again = module.measured_peak(torch.device("cpu"), "bf16")
    finally:
        module.measured_peak.cache_clear()
    assert peak == again == pytest.approx(2 * 1024**3 / 0.001)
    assert set(calls) == {((1024, 1024), torch.bfloat16)}
    assert 0.3 <= clock.now - 100.0 <= 0.31


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"peak_flops": 0.0}, r"peak_flops is 0\.0; expected FLOP/s of one device"),
        ({"peak_flops": float("nan")}, r"peak_flops is nan"),
        ({"spike_sigmas": -1.0}, r"spike_sigmas is -1\.0; expected 0"),
        ({"spike_window": 1}, r"spike_window is 1; expected .* at least 2"),
        ({"spike_stop": 101}, r"spike_stop is 101 .*spike_window = 100.*expected 100 at the most"),
    ],
)
def test_values_that_mean_nothing_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        TrainerConfig(**values)
