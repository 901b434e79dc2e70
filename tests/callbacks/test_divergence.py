"""Loss spikes are seen against a level that they do not move, over all steps, and exactly as without a resume."""

import math
import random

import numpy as np
import pytest

from mup_lightning.callbacks.divergence import RunningLevel
from mup_lightning.errors import Diverged
from mup_lightning.studies.features.runs import read_scalars
from mup_lightning.training.checkpoint import RunFolder
from mup_lightning.training.module import GPT2Module
from mup_lightning.training.train import train


def smooth(count, level=3.0, spread=0.05, seed=0):
    chance = random.Random(seed)
    return [level + chance.gauss(0.0, spread) for _ in range(count)]


def test_level_and_spread_are_those_of_numpy():
    meter = RunningLevel(window=40, sigmas=6.0)
    losses = smooth(90)
    for place, loss in enumerate(losses):
        if place >= 20:
            last = np.array(losses[max(0, place - 40) : place])
            changes = np.diff(last)
            spread = 1.4826 * np.median(np.abs(changes - np.median(changes))) / 2**0.5
            assert meter.limit() == pytest.approx(np.median(last[len(last) // 2 :]) + 6.0 * spread, rel=1e-12)
        else:
            assert meter.limit() is None
        assert not meter.exceeded(loss)


def test_no_false_alarm_in_noise_or_on_the_way_down():
    meter = RunningLevel(window=100, sigmas=6.0)
    falling = [2.0 + 4.0 * 0.99**step for step in range(5000)]
    noisy = [loss + noise for loss, noise in zip(falling, smooth(5000, 0.0), strict=True)]
    assert not any(meter.exceeded(loss) for loss in noisy)


def test_spikes_do_not_move_the_level():
    meter = RunningLevel(window=100, sigmas=6.0)
    for loss in smooth(100):
        assert not meter.exceeded(loss)
    limit = meter.limit()
    # A fifth of the window: a mean and a standard deviation would be far off by now.
    assert all(meter.exceeded(1000.0) for _ in range(20))
    assert meter.limit() < limit + 0.2
    assert not meter.exceeded(3.0)


def test_a_loss_that_stays_high_becomes_the_level():
    meter = RunningLevel(window=50, sigmas=6.0)
    judged = [meter.exceeded(loss) for loss in smooth(50) + smooth(100, level=5.0)]
    assert all(judged[50:62])
    assert not any(judged[65:])


@pytest.mark.parametrize("noise", [0.0, 0.05])
@pytest.mark.parametrize("step", [60, 100, 120, 300])
def test_a_loss_that_falls_fast_does_not_hide_a_spike(step, noise):
    """Back to where training began. The spread of the losses themselves would allow it at steps 60 to 120."""
    meter = RunningLevel(window=100, sigmas=6.0)
    falling = [6.0 + 4.9 * math.exp(-t / 40) + n for t, n in enumerate(smooth(step, 0.0, noise))]
    assert not any(meter.exceeded(loss) for loss in falling)
    assert meter.exceeded(10.8)


def test_a_loss_without_noise_does_not_spike_by_a_trifle():
    meter = RunningLevel(window=10, sigmas=6.0)
    assert not any(meter.exceeded(2.0) for _ in range(10))
    assert not meter.exceeded(2.11)
    assert meter.exceeded(2.13)


@pytest.fixture
def spiky(tiny, monkeypatch):
    """Makes configurations of 20 steps whose reported loss is 100 higher in some steps; nothing else changes."""
    original = GPT2Module.step_loss

    def make(steps, **changes):
        # It is asked for when the step has been counted, and by the guard on NaN before.
        monkeypatch.setattr(
            GPT2Module, "step_loss", lambda self: original(self) + (100.0 if self.trainer.global_step in steps else 0.0)
        )
        return tiny(**{"trainer.max_steps": 20, "trainer.spike_window": 10, "trainer.log_every": 5, **changes})

    return make


def spikes(config):
    return dict(read_scalars(config_folder(config))["train/loss_spikes"])


def config_folder(config):
    return RunFolder(config).tensorboard


def test_spikes_between_two_points_are_seen_and_told(spiky, capsys):
    config = spiky({8, 9, 14}, **{"trainer.checkpoint_every": 0})
    train(config, progress=False)
    assert spikes(config) == {5: 0, 10: 2, 15: 3, 20: 3}
    told = [line for line in capsys.readouterr().err.splitlines() if "spike" in line]
    assert len(told) == 2
    assert "in step 8 (the largest of 2 since step 8)" in told[0] or "in step 9 (the largest of 2" in told[0]
    assert "in step 14; above" in told[1]


def test_off_means_off(spiky, capsys):
    config = spiky({8, 9, 14}, **{"trainer.spike_sigmas": 0.0})
    train(config, progress=False)
    assert "train/loss_spikes" not in read_scalars(config_folder(config))
    assert "spike" not in capsys.readouterr().err


def test_repeated_spikes_end_the_run_if_asked(spiky):
    config = spiky({8, 9, 14}, **{"trainer.spike_stop": 3, "trainer.checkpoint_every": 5})
    told = r"3 of the last 10 steps were loss spikes, .*spike_stop is 3\..*step 14"
    with pytest.raises(Diverged, match=told) as error:
        train(config, progress=False)
    assert error.value.step == 15
    saved = sorted(path.name for path in RunFolder(config).checkpoints.iterdir())
    assert saved == ["step_00000005", "step_00000010"]  # that of step 15 would hold the damage


def test_spikes_end_the_run_before_a_checkpoint_of_them_is_saved(spiky):
    """The next point is at step 20."""
    config = spiky({8, 9, 14}, **{"trainer.log_every": 20, "trainer.spike_stop": 3, "trainer.checkpoint_every": 5})
    with pytest.raises(Diverged) as error:
        train(config, progress=False)
    assert error.value.step == 15
    saved = sorted(path.name for path in RunFolder(config).checkpoints.iterdir())
    assert saved == ["step_00000005", "step_00000010"]


def test_spikes_that_have_left_the_window_by_the_next_point_still_count(spiky):
    changes = {"trainer.log_every": 20, "trainer.checkpoint_every": 0, "trainer.spike_window": 8}
    config = spiky({8, 9}, **changes, **{"trainer.spike_stop": 2})
    with pytest.raises(Diverged, match=r"2 of the last 8 steps were loss spikes, .* in step 9; above"):
        train(config, progress=False)


@pytest.mark.parametrize("every", [4, 7])
def test_a_resume_changes_nothing(spiky, every):
    """The checkpoint, at step 15 or 10, lies between two points of the curves, among spikes."""
    changes = {"trainer.log_every": every, "trainer.checkpoint_every": 5, "trainer.spike_stop": 4}
    steps = {8, 9, 13, 14}
    straight = spiky(steps, **changes, **{"run.name": "straight"})
    with pytest.raises(Diverged) as wanted:
        train(straight, progress=False)
    cut = spiky(steps, **{**changes, "trainer.spike_stop": 3})
    with pytest.raises(Diverged):
        train(cut, progress=False)
    with pytest.raises(Diverged) as found:
        train(spiky(steps, **changes, **{"run.resume": "last"}), progress=False)
    assert str(found.value) == str(wanted.value)
    ours, theirs = read_scalars(config_folder(cut)), read_scalars(config_folder(straight))
    for tag in ("train/loss", "train/loss_spikes"):
        assert ours[tag] == theirs[tag], tag
