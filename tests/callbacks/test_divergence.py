"""Loss spikes are seen against a level that they do not move, over all steps, and exactly as without a resume."""

import math
import random
import re
import time
from collections import deque

import numpy as np
import pytest

from mup_lightning.callbacks.loss_checks import spike_limit
from mup_lightning.errors import Diverged
from mup_lightning.studies.features.report import read_scalars
from mup_lightning.training.module import GPT2Module
from mup_lightning.training.run import RunFolder
from mup_lightning.training.train import train


def noise(count, level=3.0, spread=0.05, seed=0):
    chance = random.Random(seed)
    return [level + chance.gauss(0.0, spread) for _ in range(count)]


def judged(losses, window=100):
    """Of each loss, whether it is a spike, and what it would have had to exceed."""
    seen, found = deque(maxlen=window), []
    for loss in losses:
        limit = spike_limit(seen, 6.0)
        found.append((loss > limit, limit))
        seen.append(loss)
    return found


def test_level_and_spread_are_those_of_numpy():
    losses = noise(90)
    for place, (spike, limit) in enumerate(judged(losses, window=40)):
        last = np.array(losses[max(0, place - 40) : place])
        changes = np.diff(last)
        assert not spike
        if place < 20:
            assert limit == math.inf
        else:
            spread = 1.4826 * np.median(np.abs(changes - np.median(changes))) / 2**0.5
            assert limit == pytest.approx(np.median(last[len(last) // 2 :]) + 6.0 * spread, rel=1e-12)


def test_spikes_do_not_move_the_level_but_a_loss_that_stays_high_becomes_it():
    """A fifth of the window: a mean and a standard deviation would be far off by then."""
    found = judged([*noise(100), *[1000.0] * 20, 3.0])
    assert [spike for spike, _ in found] == [False] * 100 + [True] * 20 + [False]
    assert found[-1][1] < found[100][1] + 0.2
    found = [spike for spike, _ in judged(noise(50) + noise(100, level=5.0), window=50)]
    assert all(found[50:62])
    assert not any(found[65:])


@pytest.mark.parametrize("spread", [0.0, 0.05])
@pytest.mark.parametrize("step", [60, 120, 300])
def test_a_loss_that_falls_fast_neither_spikes_nor_hides_a_spike(step, spread):
    """Back to where training began. The spread of the losses themselves would allow it at steps 60 to 120."""
    falling = [6.0 + 4.9 * math.exp(-t / 40) + n for t, n in enumerate(noise(step, 0.0, spread))]
    assert [spike for spike, _ in judged([*falling, 10.8])] == [False] * step + [True]


def test_a_loss_without_noise_does_not_spike_by_a_trifle():
    assert [spike for spike, _ in judged([*[2.0] * 10, 2.11, 2.13], window=10)] == [False] * 11 + [True]


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


def scalars(config):
    return read_scalars(RunFolder(config).tensorboard)


def test_spikes_between_two_points_are_logged_and_reported(spiky, capsys):
    config = spiky({8, 9, 14}, **{"trainer.checkpoint_every": 0})
    train(config, progress=False)
    assert dict(scalars(config)["train/loss_spikes"]) == {5: 0, 10: 2, 15: 3, 20: 3}
    first, second = [line for line in capsys.readouterr().err.splitlines() if "spike" in line]
    assert re.search(r"in step [89] \(the largest of 2 since step 8\)", first)
    assert "in step 14; above" in second


@pytest.mark.parametrize(
    ("changes", "message", "step", "saved"),
    [
        ({"trainer.checkpoint_every": 5}, r"3 of the last 10 steps .*stop is 3\..*step 14", 15, [5, 10]),
        # At the next point, some of the steps with spikes have left the window.
        ({"trainer.log_every": 20, "trainer.spike_window": 8, "trainer.spike_stop": 2}, r"2 of .* 8 .* 9;", 12, [4, 8]),
    ],
    ids=["at a point", "before a checkpoint, in a small window"],
)
def test_repeated_spikes_end_the_run_before_a_checkpoint_holds_the_damage(spiky, changes, message, step, saved):
    config = spiky({8, 9, 14}, **{"trainer.spike_stop": 3, **changes})
    with pytest.raises(Diverged, match=message) as error:
        train(config, progress=False)
    assert error.value.step == step
    assert sorted(path.name for path in RunFolder(config).checkpoints.iterdir()) == [f"step_{n:08d}" for n in saved]


def test_a_resume_changes_nothing(spiky):
    """The checkpoint, at step 10, lies between two points of the curves, among spikes."""
    changes = {"trainer.log_every": 7, "trainer.checkpoint_every": 5, "trainer.spike_stop": 4}
    steps = {8, 9, 13, 14}
    straight = spiky(steps, **changes, **{"run.name": "straight"})
    cut = spiky(steps, **{**changes, "trainer.spike_stop": 3})
    resumed = spiky(steps, **changes, **{"run.resume": "last"})
    messages = []
    for config in (straight, cut, resumed):
        with pytest.raises(Diverged) as error:
            train(config, progress=False)
        messages.append(str(error.value))
        if config is cut:
            time.sleep(1)  # TensorBoard reads files of the same second in the order of 10, 8, 9
    assert messages[2] == messages[0]
    ours, theirs = scalars(cut), scalars(straight)
    for tag in ("train/loss", "train/loss_spikes"):
        assert ours[tag] == theirs[tag], tag
