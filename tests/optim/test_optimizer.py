"""Roles to recipe to groups to one optimizer, which refuses parts."""

import pytest
import torch

from mup_lightning.config.schema import Config, DataConfig, ModelConfig
from mup_lightning.errors import UserError
from mup_lightning.optim.optimizer import HybridOptimizer
from mup_lightning.optim.registry import RULES, make_groups
from mup_lightning.spectral.recipe import RecipeConfig
from mup_lightning.spectral.roles import Role
from mup_lightning.training.module import build_training
from tests.optim.test_rules import optimizer


def groups_of(recipe, **shape):
    model = ModelConfig(**{"width": 64, "depth": 2, "context": 8, **shape})
    config = Config(model=model, recipe=recipe, data=DataConfig(tokenizer="bytes"))
    model, built = build_training(config, device="meta")
    return built.param_groups, model, config.derive()


def test_every_parameter_is_in_one_group_with_its_roles_values():
    groups, model, recipe = groups_of(RecipeConfig(weight_decay=0.1), tied=False)
    by_name = {info.name: group for group in groups for info in group["infos"]}
    assert sorted(info.name for group in groups for info in group["infos"]) == sorted(model.parameter_info)
    for name, info in model.parameter_info.items():
        values, group = recipe.of(info), by_name[name]
        eps = 1e-16 * values.scaled["eps"] if values.scaled else None
        wanted = (values.rule, values.lr, values.weight_decay, eps)
        assert (group["rule"], group["lr"], group["weight_decay"], group.get("eps")) == wanted
    assert by_name["blocks.0.mlp.up.weight"]["rule"] == "muon_kimi"
    assert by_name["blocks.0.mlp.up.bias"]["rule"] == "adamw"


@pytest.mark.parametrize(
    "values",
    [
        {"lr": 1e29, "base": {"bias": {"lr": 1e29}}},
        {"lr": 1e20, "weight_decay": 1e20},
        {"eps": 1e29, "base": {"bias": {"eps": 1e29}}},
    ],
)
def test_values_that_float32_cannot_hold_are_refused(values):
    with pytest.raises(UserError, match=r"of this model comes out as \S+, which float32 cannot hold"):
        groups_of(RecipeConfig(**values))


def test_equal_hyperparameters_share_a_group():
    """At any depth: muon_kimi for the hidden matrices, and AdamW's ε is all that separates vectors from embeddings."""
    for depth in (2, 24):
        groups, _, recipe = groups_of(RecipeConfig(), depth=depth)
        assert len(groups) == 3
    assert recipe.values[Role.HIDDEN_BIAS].scaled != recipe.values[Role.INPUT].scaled
    at_base, _, _ = groups_of(RecipeConfig(optimizer="adamw", base_width=64, base_depth=2))
    assert len(at_base) == 1


def test_processes_get_equal_shares_of_the_operations_on_matrices(monkeypatch):
    monkeypatch.setattr("mup_lightning.optim.optimizer.rank_and_world", lambda: (0, 3))
    stepper = HybridOptimizer(groups_of(RecipeConfig(), depth=5)[0])
    costs = {name: held.cost for name, held in stepper.held.items()}
    square = costs["blocks.0.attention.out.weight"]  # 6n³ an iteration, and 18n³ on (4n, n)
    assert costs["blocks.0.attention.qkv.weight"] == costs["blocks.0.mlp.up.weight"] == 3 * square > 0
    shares = [sum(costs[name] for name in stepper.kept(rank, once=True)) for rank in range(3)]
    assert sum(shares) == sum(costs.values())
    assert max(shares) - min(shares) < max(costs.values())


def test_a_matrix_that_is_not_whole_is_refused():
    _, model, recipe = groups_of(RecipeConfig())
    parameters = dict(model.named_parameters())
    parameters["blocks.0.mlp.up.weight"] = torch.nn.Parameter(torch.zeros(64 * 256))
    with pytest.raises(RuntimeError, match=r"muon_kimi needs blocks\.0\.mlp\.up\.weight whole"):
        make_groups(parameters, model.parameter_info, recipe, {})


@pytest.mark.parametrize("rule", RULES)
def test_a_group_whose_parameters_were_flattened_silently_is_refused(rule):
    parameter = torch.nn.Parameter(torch.ones(4, 3))
    stepper = optimizer(rule, [parameter])
    flat = torch.nn.Parameter(torch.ones(12))
    flat.grad = torch.ones(12)
    stepper.param_groups[0]["params"] = [flat]
    with pytest.raises(RuntimeError, match=rf"^{rule} works on whole parameters, but w .* become \(12,\)"):
        stepper.step()
    assert (flat == 1).all()
