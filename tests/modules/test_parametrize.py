"""The recipe for modules of others: what is concluded of them, what is done to them, and what is refused."""

import copy
import pickle
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mup_lightning import parametrize
from mup_lightning.config.model import ModelConfig
from mup_lightning.errors import UserError
from mup_lightning.model.gpt2 import build
from mup_lightning.modules import parametrize as module_of
from mup_lightning.modules.trace import trace
from mup_lightning.spectral.recipe import RecipeConfig, derive
from mup_lightning.spectral.roles import Role
from tests.families import FAMILIES
from tests.modules.coordinates import exponents
from tests.modules.networks import BUILD, ResidualMLP, batch, logits

OPTIONS = {"optimizer": "adamw", "lr": 2**-8}


def parametrized(name, shape, base=(32, 2), **options):
    torch.manual_seed(0)
    model, (x, _) = BUILD[name](*shape), batch(name, 0)
    return model, parametrize(model, base=BUILD[name](*base), grown=BUILD[name](64, 1), example=x, **OPTIONS | options)


@pytest.mark.parametrize("name", BUILD)
@pytest.mark.parametrize("optimizer", ["sgd", "muon_kimi"])
def test_roles_and_values_are_those_of_the_recipe(name, optimizer):
    """Width x 4 and depth x 4, by what a reader of each module would say of its parameters."""
    values = OPTIONS | {"optimizer": optimizer, "weight_decay": 0.1}
    _, found = parametrized(name, (128, 8), **values)
    recipe = derive(
        RecipeConfig(**OPTIONS | {"optimizer": optimizer}, weight_decay=0.1, base_width=32, base_depth=2), 128, 8
    )
    for parameter, conclusion in found.conclusions.items():
        role, own = expected(name, parameter)
        assert conclusion.info.role == role, parameter
        if not own:
            assert conclusion.values == recipe.values[role], parameter
    factors = {kind: factor for factor, kind in found.multipliers.values()}
    assert factors == {"output": recipe.multipliers.residual, "input": recipe.multipliers.output}
    assert len(found.multipliers) == (8 if name == "mlp" else 16) + 1
    if name == "vit":
        assert "vit.layers.*.mlp.fc2" in str(found)
    lrs = {id(p): group["lr"] for group in found.groups for p in group["params"]}
    assert len(lrs) == len(found.conclusions)


def expected(name, parameter):
    """The role of a parameter, and whether its output side is one that does not grow as the width."""
    inside = re.search(r"\.\d+\.", parameter)
    vector = re.search(r"bias$|norm|ln_|blocks\.\d+\.0\.", parameter)
    if vector:
        return (Role.HIDDEN_BIAS if inside else Role.INPUT_BIAS), parameter in ("classifier.bias", "last.bias")
    if inside:
        return Role.HIDDEN, "k_proj" in parameter or "v_proj" in parameter
    return (Role.OUTPUT if re.search("lm_head|classifier|last", parameter) else Role.INPUT), False


SAME = {"kv": 1.0, "head": 1.0}
SWITCHES = [
    *({"tied": False}, {"tied": False, "parallel": True, "gated": True}),
    *({"tied": False, "qk_norm": True, "qk_gain": True}, {"tied": True}),
]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("switches", SWITCHES)
def test_what_is_found_is_what_our_own_model_declares(family, switches, monkeypatch):
    """Roles and narrower sides of every parameter of it, from its shapes and its forward pass alone."""

    def make(width, depth):
        shape = {"width": width, "depth": depth, "head_size": 8, "context": 12, "vocab_size": 64}
        config = ModelConfig(**shape, **FAMILIES[family] | switches)
        return build(config, derive(RecipeConfig(base_width=width, base_depth=depth), width, depth, sides=SAME), 0)

    monkeypatch.setattr(module_of, "_multipliers", lambda *_: {})  # its output product is in no module
    module = make(64, 4)
    found = parametrize(module, base=make(32, 2), example=torch.randint(64, (2, 12)), **OPTIONS)
    for name, info in module.parameter_info.items():
        conclusion = found.conclusions[name]
        assert conclusion.info.role == info.role, name
        assert bool(conclusion.info.side) == (info.side == "head"), name  # keys grow as the width here
        assert conclusion.k == 2


class Branches(nn.Module):
    """A stream with one kind of branch."""

    def __init__(self, width, depth, matrices=2, kind="serial"):
        super().__init__()
        self.first, self.last, self.kind = nn.Linear(8, width), nn.Linear(width, 4), kind
        layers = [
            nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(matrices))) for _ in range(2 * depth)
        ]
        self.blocks = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(width)

    def forward(self, x):
        x = torch.tanh(self.first(x))
        for one, two in zip(self.blocks[::2], self.blocks[1::2], strict=True):
            if self.kind == "serial":
                x = one(x) + x
                x = x + two(x)
            elif self.kind == "parallel":
                x = x + one(x) + two(x)
            elif self.kind == "in place":
                x = x.clone()
                x += one(x)
                x = torch.add(two(x), x)
            elif self.kind == "after the norm":
                x = self.norm(x + one(x))
                x = self.norm(x + two(x))
            elif self.kind == "polynomials":  # additions without matrices are no branches
                x = x + one(x + x**3)
                x = x + two(x * (1 + torch.tanh(x)))
        return self.last(self.norm(x))


@pytest.mark.parametrize("kind", ["serial", "parallel", "in place", "after the norm", "polynomials"])
@pytest.mark.parametrize("matrices", [1, 2, 3])
def test_branches_are_found_however_they_are_written(kind, matrices):
    traced = trace(Branches(16, 3, matrices, kind), (torch.randn(5, 8),))
    assert [branch.k for branch in traced.branches] == [matrices] * 6
    assert [branch.module for branch in traced.branches] == [f"blocks.{n}.{matrices - 1}" for n in range(6)]
    assert all(use.branch is None for name in ("first.weight", "last.weight") for use in traced.uses[name])


@pytest.mark.parametrize("norm_first", [True, False])
def test_torchs_own_attention_is_a_branch_of_two_matrices(norm_first):
    def make(width, depth):
        kinds = {"dropout": 0.0, "batch_first": True, "norm_first": norm_first}
        layer = nn.TransformerEncoderLayer(width, width // 8, 4 * width, **kinds)
        encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        return nn.Sequential(nn.Linear(24, width), encoder, nn.Linear(width, 10))

    model, x = make(32, 4), torch.randn(2, 5, 24)
    found = parametrize(model, base=make(16, 2), example=x, **OPTIONS)
    for matrix in ("in_proj_weight", "out_proj.weight"):
        conclusion = found.conclusions[f"1.layers.3.self_attn.{matrix}"]
        assert (conclusion.info.role, conclusion.k) == (Role.HIDDEN, 2)
    assert found.depths == (4, 8)
    assert found.multipliers["1.layers.3.self_attn"] == (0.5, "output")
    trained = model(x)
    with torch.no_grad():  # where torch would take one fused operation without hooks
        torch.testing.assert_close(model.eval()(x), trained)


@pytest.mark.parametrize("matrices", [1, 2])
def test_one_matrix_in_a_branch_has_its_own_condition(matrices):
    module, x = Branches(32, 8, matrices), torch.randn(5, 8)
    found = parametrize(module, base=Branches(16, 2, matrices), example=x, **OPTIONS | {"optimizer": "sgd"})
    recipe = derive(RecipeConfig(optimizer="sgd", branch_depth=matrices, base_width=16, base_depth=2), 32, 8)
    assert {factor for factor, kind in found.multipliers.values() if kind == "output"} == {recipe.multipliers.residual}
    assert found.conclusions["blocks.0.0.weight"].k == matrices


def test_multipliers_act_and_survive():
    """As factors written into the forward pass; through state_dict, copies, pickling, torch.compile and DDP."""
    (model, _), x = parametrized("mlp", (64, 8)), batch("mlp", 1)[0]

    def by_hand(model):
        h = F.linear(x, model.first.weight, model.first.bias)
        for block in model.blocks:
            inner = block[2](block[1](block[0](h)))
            h = h + 0.25 * F.linear(inner, block[3].weight, block[3].bias)
        return F.linear(0.5 * model.norm(h), model.last.weight, model.last.bias)

    torch.testing.assert_close(model(x), by_hand(model))
    assert model.state_dict().keys() == ResidualMLP(64, 8).state_dict().keys()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(other(x), model(x))
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(x), model(x))
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        torch.testing.assert_close(nn.parallel.DistributedDataParallel(model)(x), model(x))
    finally:
        torch.distributed.destroy_process_group()
    with pytest.raises(UserError, match="parametrized already"):
        parametrize(model, base=ResidualMLP(32, 2), example=x, **OPTIONS)


def test_the_init_is_the_bases_in_the_recipes_scale():
    torch.manual_seed(1)
    base, model = ResidualMLP(32, 2), ResidualMLP(512, 2)
    parametrize(model, base=base, example=torch.randn(4, 24), **OPTIONS)
    for name in ("first.weight", "blocks.0.1.weight", "blocks.1.3.weight", "last.weight"):
        ratio = model.get_parameter(name).std().item() / base.get_parameter(name).std().item()
        assert ratio == pytest.approx(1 / 4 if "blocks" in name else 1, rel=0.05), name
    assert (model.norm.weight == 1).all()
    assert (model.norm.bias == 0).all()


@pytest.mark.parametrize("name", ["gpt2", "mlp"])
def test_at_the_base_shape_nothing_changes(name):
    """Weights, function and AdamW's steps."""
    x, labels = batch(name, 0)
    torch.manual_seed(0)
    plain = BUILD[name](32, 2).double()
    model, x = copy.deepcopy(plain), x.double() if x.is_floating_point() else x
    sizes = {"base": BUILD[name](32, 2).double(), "grown": BUILD[name](64, 2)}
    found = parametrize(model, **sizes, example=x, eps=1e-8, **OPTIONS)
    steppers = found.optimizer(), torch.optim.AdamW(plain.parameters(), lr=2**-8, betas=(0.9, 0.95), weight_decay=0.0)
    for one, stepper in zip((model, plain), steppers, strict=True):
        one.eval()
        for _ in range(3):
            F.cross_entropy(logits(one, x), labels).backward()
            stepper.step()
            stepper.zero_grad()
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[key], rtol=0, atol=1e-12)


def test_torchs_own_optimizers_take_the_groups():
    model, found = parametrized("mlp", (64, 4))
    optimizer = torch.optim.AdamW(found.groups, betas=(0.9, 0.95))
    assert {group["lr"] for group in optimizer.param_groups} == {group["lr"] for group in found.groups}
    F.cross_entropy(model(batch("mlp", 0)[0]), batch("mlp", 0)[1]).backward()
    optimizer.step()


class Odd(nn.Module):
    """Everything that cannot be told."""

    def __init__(self, width, fault):
        super().__init__()
        self.fault, self.first, self.last = fault, nn.Linear(8, width), nn.Linear(width, 4)
        self.inner, self.outer = nn.Linear(width, width), nn.Linear(width, width)
        if fault == "unused":
            self.spare = nn.Parameter(torch.ones(width))

    def forward(self, x):
        h = self.first(x)
        if self.fault == "main path":
            return self.last(self.outer(torch.relu(self.inner(h))))
        if self.fault == "two places":
            h = h + self.inner(torch.relu(h))
            return self.last(self.inner(h))
        if self.fault == "no module":
            branch = torch.relu(F.linear(h, self.inner.weight, self.inner.bias))
            h = h + F.linear(branch, self.outer.weight, self.outer.bias)
            return self.last(h)
        if self.fault == "nested":
            inner = self.inner(h) + h
            return self.last(h + self.outer(inner))
        h = h + self.outer(torch.relu(self.inner(h)))
        return F.linear(h, self.last.weight, self.last.bias) if self.fault == "output" else self.last(h)


FAULTS = {
    "main path": r"inner\.weight .*: both sides grow, on the main path",
    "two places": r"inner\.weight .*: it is used both in a residual branch and on the main path",
    "no module": "no module returns what the residual branch of inner.bias adds",
    "nested": "the residual branch of inner.bias contains 1 others",
    "output": r"last\.weight is no module's own",
    "unused": r"spare \(32,\): the forward pass does not use it",
}


class Convolutions(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first, self.last = nn.Conv1d(3, width, 1), nn.Linear(width, 4)
        self.convolution = nn.Conv1d(width, width, 3, padding=1)

    def forward(self, x):
        x = self.first(x)
        return self.last((x + self.convolution(x)).mean(-1))


CONVOLUTIONS = {"module": Convolutions(32), "base": Convolutions(16), "example": torch.randn(2, 3, 9)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *(({"module": Odd(32, fault), "base": Odd(16, fault)}, message) for fault, message in FAULTS.items()),
        ({"base": Odd(16, "unused")}, "the base has spare, and the module nothing like it"),
        ({"base": Odd(32, "")}, "no side differs between base and module"),
        ({"declare": {"first.*": "in"}}, "declared as 'in'; expected one of input, hidden"),
        ({"declare": {"fist.weight": "input"}}, "'fist.weight', which is no parameter .*; did you mean first.weight"),
        ({"branch_depth": 1}, "branch_depth is not for parametrize"),
        ({"optimizer": "adamx"}, r"recipe\.optimizer is 'adamx'; expected one of"),
        ({"weight_decya": 0.1}, r"unknown option recipe\.weight_decya; did you mean recipe\.weight_decay"),
        (CONVOLUTIONS | {"optimizer": "muon"}, r"muon steps matrices, and convolution.weight has 3 sides"),
    ],
)
def test_what_is_wrong_or_cannot_be_told_is_refused(change, message):
    given = {"module": Odd(32, ""), "base": Odd(16, ""), "example": torch.randn(3, 8)} | OPTIONS | change
    with pytest.raises(UserError, match=message):
        parametrize(**given)


def test_a_role_that_cannot_be_told_can_be_declared():
    module, base = (Odd(width, "main path") for width in (32, 16))
    roles = {"*ner.*": "hidden", "outer.*": "hidden"}
    found = parametrize(module, base=base, example=torch.randn(3, 8), declare=roles, **OPTIONS)
    assert found.conclusions["inner.weight"].why == "declared"


def test_growing_heads_are_said(monkeypatch):
    monkeypatch.setattr("tests.modules.networks.HEAD", 32)
    base = BUILD["gpt2"](64, 2)
    monkeypatch.setattr("tests.modules.networks.HEAD", 64)
    with pytest.warns(UserWarning, match="attention heads have 32 and 64 channels"):
        parametrize(BUILD["gpt2"](128, 2), base=base, example=batch("gpt2", 0)[0], **OPTIONS)


@pytest.mark.parametrize("axis", ["width", "depth"])
def test_features_keep_their_size_where_they_would_grow(axis):
    sizes = (64, 128, 256) if axis == "width" else (2, 4, 8)
    ours, plain = (exponents("mlp", axis, sizes, 3, recipe=recipe) for recipe in (True, False))
    assert abs(ours["last stream"].exponent) < 0.15
    assert plain["last stream"].exponent > 0.15
    assert abs(ours["change of outputs"].exponent) < 0.3
    if axis == "width":
        assert plain["change of outputs"].exponent > 0.4


def test_the_guides_example_runs(capsys):
    page = Path(__file__).parents[2] / "docs/guide/any_module.md"
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.S | re.M):
        exec(block, {})
    assert "residual branches 2 -> 8" in capsys.readouterr().out
