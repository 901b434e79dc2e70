"""The schedule: closed forms of every kind, lengths of the warm-up, and what is refused."""

import math

import pytest
import torch

from mup_lightning.config.schema import Config
from mup_lightning.errors import UserError
from mup_lightning.optim.schedule import first_difference, lr_factor, warmup_steps
from tests.optim.test_rules import optimizer


def config_of(steps=110, **schedule):
    """64 tokens in a step."""
    recipe, data = {"lr": 0.01}, {"batch_size": 4, "micro_batch": 4}
    values = {"model": {"context": 16}, "recipe": recipe, "data": data, "trainer": {"max_steps": steps}}
    return Config.from_plain(values | {"schedule": schedule})


def factors(config, steps=None):
    factor = lr_factor(config)
    return [factor(step) for step in range(steps or config.trainer.max_steps)]


WARM = [(step + 1) / 11 for step in range(10)]
CLOSED = {
    "cosine": [0.1 + 0.45 * (1 + math.cos(math.pi * step / 99)) for step in range(100)],
    "linear": [1 - 0.9 * step / 99 for step in range(100)],
    "wsd": [1.0] * 78 + [1 - 0.9 * step / 22 for step in range(1, 23)],  # a fifth of 110 steps
    "constant": [1.0] * 100,
}


@pytest.mark.parametrize("kind", CLOSED)
def test_closed_forms(kind):
    """110 steps, 10 of them a warm-up; the last one is on the floor, and so is what would come after it."""
    relative = config_of(kind=kind, warmup_steps=10, floor=0.1)
    absolute = config_of(kind=kind, warmup_steps=10, min_lr=0.001)
    wanted = WARM + CLOSED[kind]
    assert factors(relative) == pytest.approx(wanted, rel=1e-14)
    assert factors(relative, 120) == factors(absolute, 120)
    assert factors(relative, 120)[109:] == [1.0 if kind == "constant" else 0.1] * 11
    assert factors(relative)[10:12][kind in ("wsd", "constant")] == 1.0  # to the bit: a trunk and its branches agree
    assert factors(config_of(kind=kind, floor=0))[-1] == (kind == "constant")


def test_the_default_is_what_it_was():
    """The formula that published results and older checkpoints were made with."""
    for steps in (2, 9, 10, 60, 400, 999, 1221):
        warmup, floor = steps // 10, 3e-5 / 0.01
        old = [(step + 1) / (warmup + 1) for step in range(warmup)]
        for step in range(warmup, steps):
            progress = min(1.0, (step - warmup) / max(1, steps - 1 - warmup))
            old.append(floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress)))
        assert factors(config_of(steps)) == old


def test_lengths_of_the_warmup():
    assert [warmup_steps(config_of(steps)) for steps in range(1, 200)] == [steps // 10 for steps in range(1, 200)]
    for given, steps in (
        ({"warmup_share": 0.29}, 29),
        ({"warmup_share": 0}, 0),
        ({"warmup_steps": 0}, 0),
        ({"warmup_tokens": 1}, 1),
        ({"warmup_tokens": 64 * 7 + 31}, 7),
        ({"warmup_tokens": 64 * 7 + 33}, 8),
        ({"warmup_tokens": 64 * 7, "warmup_share": 0.5}, 7),
    ):
        assert warmup_steps(config_of(100, **given)) == steps


def test_a_constant_trunk_is_every_wsd_run_up_to_its_decay():
    trunk = lr_factor(config_of(2000, kind="constant", warmup_tokens=64 * 13, min_lr=0.1))  # there is no floor
    for steps, decay in ((40, 0.2), (100, 0.5), (1999, 0.01)):
        branch = lr_factor(config_of(steps, kind="wsd", warmup_steps=13, decay=decay))
        begin = steps - round(decay * steps)
        assert first_difference(trunk, branch, begin) is None
        assert first_difference(trunk, branch, begin + 1) == (begin, 1.0, branch(begin))


def test_groups_keep_their_ratios():
    stepper = optimizer("adamw", [torch.nn.Parameter(torch.zeros(2))], lr=0.01)
    other = optimizer("adamw", [torch.nn.Parameter(torch.zeros(2))], lr=0.003)
    stepper.add_param_group(other.param_groups[0])
    schedule = torch.optim.lr_scheduler.LambdaLR(stepper, lr_factor(config_of(20, warmup_steps=3)))
    for _ in range(19):
        stepper.step()
        schedule.step()
        assert stepper.param_groups[1]["lr"] / stepper.param_groups[0]["lr"] == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"warmup_steps": 50}, r"schedule\.warmup_steps is 50, but the run has only 50 steps \(trainer\.max_steps\); "),
        ({"warmup_tokens": 3200}, r"schedule\.warmup_tokens is 3200, which is 50 steps, but the run has only 50 steps"),
        ({"warmup_steps": 40, "kind": "wsd"}, r"only 50 steps .*, the last 10 of which are schedule\.decay's"),
        ({"warmup_share": 0.5, "kind": "wsd", "decay": 0.5}, r"schedule\.warmup_share is 0\.5, which is 25 steps"),
        ({"min_lr": 0.1}, r"schedule\.min_lr is 0\.1, above recipe\.lr 0\.01"),
    ],
)
def test_impossible_schedules_are_refused(schedule, message):
    with pytest.raises(UserError, match=message):
        lr_factor(config_of(50, **schedule))
