"""Groups: roles to recipe to torch groups. Schedule: its shape, and each group's ratio."""

import math
from itertools import pairwise

import pytest
import torch

from mup_lightning.config.optimizers import RuleOptions
from mup_lightning.config.schema import ModelConfig, ScheduleConfig
from mup_lightning.errors import UserError
from mup_lightning.model.gpt2 import build
from mup_lightning.optim.groups import make_groups
from mup_lightning.optim.optimizer import HybridOptimizer
from mup_lightning.optim.schedule import make_schedule, warmup_cosine
from mup_lightning.spectral.recipe import RecipeConfig, derive
from mup_lightning.spectral.roles import Role


def groups_of(recipe_config, **shape):
    config = ModelConfig(**{"width": 64, "depth": 2, "context": 8, "vocab_size": 50, **shape})
    recipe = derive(recipe_config, config.width, config.depth)
    model = build(config, recipe, 0, device="meta")
    return make_groups(dict(model.named_parameters()), model.parameter_info, recipe, RuleOptions()), model, recipe


def test_every_parameter_is_in_one_group_with_its_roles_values():
    groups, model, recipe = groups_of(RecipeConfig(weight_decay=0.1), tied=False)
    by_name = {name: group for group in groups for name in group["names"]}
    assert sorted(name for group in groups for name in group["names"]) == sorted(model.parameter_info)
    for name, info in model.parameter_info.items():
        values, group = recipe.values[info.role], by_name[name]
        assert (group["rule"], group["lr"], group["weight_decay"], group["eps"]) == (
            values.rule,
            values.lr,
            values.weight_decay,
            values.eps,
        )
    assert by_name["blocks.0.mlp.up.weight"]["rule"] == "muon_kimi"
    assert by_name["blocks.0.mlp.up.bias"]["rule"] == "adamw"


def test_equal_hyperparameters_share_a_group():
    """At any depth: muon_kimi for the hidden matrices, and AdamW's ε is all that parts vectors from embeddings."""
    for depth in (2, 48):
        groups, _, recipe = groups_of(RecipeConfig(), depth=depth)
        assert len(groups) == 3
    assert recipe.values[Role.HIDDEN_BIAS].eps != recipe.values[Role.INPUT].eps
    at_base, _, _ = groups_of(RecipeConfig(optimizer="adamw", base_width=64, base_depth=2))
    assert len(at_base) == 1


def test_a_matrix_that_is_not_whole_is_refused():
    config = ModelConfig(width=64, depth=1, context=8, vocab_size=50)
    recipe = derive(RecipeConfig(), 64, 1)
    model = build(config, recipe, 0)
    parameters = dict(model.named_parameters())
    parameters["blocks.0.mlp.up.weight"] = torch.nn.Parameter(torch.zeros(64 * 256))
    with pytest.raises(RuntimeError, match=r"muon_kimi needs blocks\.0\.mlp\.up\.weight whole"):
        make_groups(parameters, model.parameter_info, recipe, RuleOptions())


def test_schedule_warms_up_and_falls_to_the_floor():
    factor = warmup_cosine(ScheduleConfig(warmup_steps=10, min_lr=0.001), base_lr=0.01, total_steps=110)
    values = [factor(step) for step in range(111)]
    assert values[0] == pytest.approx(1 / 11)
    assert values[10] == 1.0
    assert all(a < b for a, b in pairwise(values[:11]))
    assert all(a > b for a, b in pairwise(values[10:110]))
    assert values[109] == pytest.approx(0.1)
    assert values[110] == pytest.approx(0.1)
    middle = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 50 / 99))
    assert values[60] == pytest.approx(middle)


def test_warmup_defaults_to_a_tenth():
    factor = warmup_cosine(ScheduleConfig(), base_lr=0.01, total_steps=200)
    assert factor(19) < 1.0
    assert factor(20) == 1.0


def test_groups_keep_their_ratios():
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    groups = [
        {"params": [p], "names": ["w"], "blocks": [1], "rule": "adamw", "lr": lr, "weight_decay": 0.0, "eps": 1e-8}
        for p, lr in zip(parameters, (0.01, 0.003), strict=True)
    ]
    optimizer = HybridOptimizer(groups)
    schedule = make_schedule(optimizer, ScheduleConfig(warmup_steps=3), 0.01, 20)
    for _ in range(19):
        optimizer.step()
        schedule.step()
        assert optimizer.param_groups[1]["lr"] / optimizer.param_groups[0]["lr"] == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (ScheduleConfig(warmup_steps=50), r"schedule\.warmup_steps is 50, but the run has only 50 steps"),
        (ScheduleConfig(min_lr=0.1), r"schedule\.min_lr is 0\.1, above recipe\.lr 0\.01"),
    ],
)
def test_impossible_schedules_are_refused(schedule, message):
    with pytest.raises(UserError, match=message):
        warmup_cosine(schedule, 0.01, 50)
