"""The derived recipe against the published tables, hand derivations and measured norms of real directions."""

from dataclasses import replace
from fractions import Fraction

import pytest

from mup_lightning.config.model import ModelConfig
from mup_lightning.config.schema import Config
from mup_lightning.spectral.condition import solve
from mup_lightning.spectral.families import FAMILIES
from mup_lightning.spectral.recipe import BaseFactors, Multipliers, RecipeConfig, derive, exponents
from mup_lightning.spectral.roles import ParameterInfo, Role
from mup_lightning.spectral.scale import HALF, ONE, E, L, M, N, Ratios, Scale, largest

# arXiv 2603.00541, the tables for k >= 2, as (width, depth) exponents of input / hidden / output.
PUBLISHED = {
    "muon_kimi": {"lr": ["0 0", "-1/2 0", "0 0"], "weight_decay": ["0 0", "1/2 0", "0 0"]},
    "muon": {"lr": ["1/2 0", "0 0", "1/2 0"], "weight_decay": ["-1/2 0", "0 0", "-1/2 0"]},
    "shampoo": {
        "lr": ["1/2 0", "0 0", "1/2 0"],
        "weight_decay": ["-1/2 0", "0 0", "-1/2 0"],
        "eps": ["-1 0", "0 -2", "-1 0"],
    },
    "soap": {"lr": ["1/2 0", "0 0", "1/2 0"], "weight_decay": ["-1/2 0", "0 0", "-1/2 0"]},
    "sgd": {"lr": ["1 0", "0 1", "1 0"], "weight_decay": ["-1 0", "0 -1", "-1 0"]},
    "adamw": {"lr": ["0 0", "-1 0", "0 0"], "weight_decay": ["0 0", "1 0", "0 0"], "eps": ["-1 0", "-1 -1", "-1 0"]},
    "lion": {"lr": ["0 0", "-1 0", "0 0"], "weight_decay": ["0 0", "1 0", "0 0"]},
    "sophia": {"lr": ["0 0", "-1 0", "0 0"], "weight_decay": ["0 0", "1 0", "0 0"]},
    "sso": {"lr": ["0 0", "0 0", "1 0"], "weight_decay": ["0 0", "0 0", "-1 0"]},
}
# The same paper on hidden biases, k >= 2.
PUBLISHED_BIAS = {
    "sgd": {"lr": "1 1", "weight_decay": "-1 -1"},
    "adamw": {"lr": "0 0", "weight_decay": "0 0", "eps": "-1 -1"},
    "lion": {"lr": "0 0", "weight_decay": "0 0"},
    "sophia": {"lr": "0 0", "weight_decay": "0 0"},
}


def scale(text):
    width, depth = text.split()
    return Scale(Fraction(width), Fraction(depth))


CELLS = [
    (family, key, role, cell)
    for family in FAMILIES
    for key, cells in (PUBLISHED.get(family, {}) | {"multiplier": ["0 0", "0 -1", "-1 0"]}).items()
    for role, cell in zip((Role.INPUT, Role.HIDDEN, Role.OUTPUT), cells, strict=True)
] + [(family, key, Role.HIDDEN_BIAS, cell) for family, rows in PUBLISHED_BIAS.items() for key, cell in rows.items()]


@pytest.mark.parametrize("branch_depth", [2, 3, 7])
def test_every_published_cell_comes_out(branch_depth):
    """The multipliers do not depend on the optimizer."""
    for family, key, role, cell in CELLS:
        found = getattr(exponents(FAMILIES[family], role, branch_depth), key)
        assert found.asymptotic == scale(cell), (family, key, role)


def test_one_matrix_branches_differ_by_the_root_of_depth():
    """k = 1 by hand: α = L^-1/2, so ‖ΔW‖_R = (1/L)/α = L^-1/2 goes to every hidden learning rate but SGD's.

    SGD: <ΔW, G> = 1/L and ‖ΔW‖₂ = L^-1/2 give ‖G‖₂ = L^-1/2, so η = ‖ΔW‖/‖G‖ = 1, and λ = ‖G‖/‖W‖ = L^-1/2.
    """
    hidden = solve(Role.HIDDEN, 1)
    assert hidden.multiplier == scale("0 -1/2")
    assert hidden.update == scale("0 -1/2")
    for name in ("muon_kimi", "adamw", "muon", "sso"):
        one, two = (exponents(FAMILIES[name], Role.HIDDEN, k) for k in (1, 2))
        assert one.lr == two.lr * scale("0 -1/2")
        assert one.weight_decay == two.weight_decay
    assert exponents(FAMILIES["sgd"], Role.HIDDEN, 1).lr == scale("0 0")
    assert exponents(FAMILIES["sgd"], Role.HIDDEN, 1).weight_decay == scale("0 -1/2")
    assert exponents(FAMILIES["adamw"], Role.HIDDEN, 1).eps == scale("-1 -1/2")


def test_base_shape_leaves_base_values_untouched():
    config = RecipeConfig(weight_decay=0.1, aux_lr_factor=0.5)
    recipes = [
        derive(RecipeConfig(weight_decay=0.1, aux_lr_factor=0.5, parametrization=p, branch_depth=k), 256, 4)
        for p, k in (("sp", 2), ("mup", 1), ("mup", 2))
    ]
    assert recipes[0] == recipes[1] == recipes[2]
    hidden, embedding = recipes[0].values[Role.HIDDEN], recipes[0].values[Role.INPUT]
    assert (hidden.rule, hidden.lr, hidden.weight_decay, hidden.scaled) == ("muon_kimi", config.lr, 0.1, {})
    assert (embedding.rule, embedding.lr, embedding.scaled) == ("adamw", config.lr * 0.5, {"eps": 1.0})


ORDINARY_AND_PURE = [(name, False) for name in FAMILIES] + [(f.name, True) for f in FAMILIES.values() if f.whole_matrix]


@pytest.mark.parametrize(("optimizer", "pure"), ORDINARY_AND_PURE)
def test_all_but_the_matrices_inside_blocks_have_a_rate_of_their_own(optimizer, pure):
    plain, scaled = (
        derive(RecipeConfig(optimizer=optimizer, pure=pure, eps=1e-8, aux_lr_factor=factor), 512, 16).values
        for factor in (1, 0.25)
    )
    main = {Role.HIDDEN} | ({role for role in Role if not role.is_vector} if pure else set())
    assert {role for role in Role if scaled[role].lr == plain[role].lr} == main
    assert all(scaled[role].lr == plain[role].lr / 4 for role in Role if role not in main)


@pytest.mark.parametrize("name", [family.name for family in FAMILIES.values() if family.whole_matrix])
def test_pure_mode_gives_every_matrix_its_own_column(name):
    config = RecipeConfig(optimizer=name, pure=True, lr=0.5, weight_decay=0.25, base_width=64, base_depth=2)
    values = derive(config, width=256, depth=8).values
    for role in (Role.INPUT, Role.HIDDEN, Role.OUTPUT):
        row = exponents(FAMILIES[name], role, 2)
        assert values[role].rule == name
        assert values[role].lr == pytest.approx(0.5 * row.lr.at(Ratios(4, 4)))
        assert values[role].weight_decay == pytest.approx(0.25 * row.weight_decay.at(Ratios(4, 4)))
        assert values[role].scaled == {key: pytest.approx(scale.at(Ratios(4, 4))) for key, scale in row.scaled.items()}
    assert {values[role].rule for role in (Role.INPUT_BIAS, Role.HIDDEN_BIAS)} == {"adamw"}


@pytest.mark.parametrize("branch_depth", [1, 2])
def test_the_measured_variant_of_soap_is_the_row_of_adamw(branch_depth):
    """docs/results/probe.md: ‖A‖_R of the real SOAP is n_in, as a sign's."""
    soap = {"optimizer": "soap", "pure": True, "weight_decay": 0.25, "branch_depth": branch_depth}
    measured = derive(RecipeConfig(**soap, variant="measured"), 1024, 16).values
    published = derive(RecipeConfig(**soap), 1024, 16).values
    adamw = derive(RecipeConfig(optimizer="adamw", weight_decay=0.25, branch_depth=branch_depth), 1024, 16).values
    for role in (Role.INPUT, Role.HIDDEN, Role.OUTPUT):
        assert measured[role].rule == published[role].rule == "soap"
        assert (measured[role].lr, measured[role].weight_decay) == (adamw[role].lr, adamw[role].weight_decay)
    assert measured[Role.HIDDEN].lr == published[Role.HIDDEN].lr / 4


def test_narrow_keys_and_values_by_hand():
    """n inputs, m outputs: ‖W‖_R = √(n/m)·‖W‖₂ = 1 wants variance m/n²; ‖ΔW‖₂ = √(m/n) and <ΔW, G> = 1/L want
    ‖G‖₂ = √(n/m)/L, spread over n·m entries. Where m grows as n, that is any hidden matrix."""
    weight = solve(Role.HIDDEN, 2, M)
    assert weight.init_var == M / N**2
    assert (weight.norm, weight.update, weight.multiplier) == (ONE, ONE, ONE / L)
    assert weight.gradient == (N / M) ** HALF / L
    assert weight.gradient_entry == ONE / (M * L)
    wanted = {"adamw": ONE / N, "muon": (M / N) ** HALF, "muon_kimi": M**HALF / N, "sgd": L * M / N, "sso": ONE}
    for name, family in FAMILIES.items():
        row, usual = exponents(family, Role.HIDDEN, 2, M), exponents(family, Role.HIDDEN, 2)
        assert row.lr == wanted.get(name, row.lr), name
        for mine, others in [*zip(row.scaled.values(), usual.scaled.values(), strict=True), (row.lr, usual.lr)]:
            assert mine.at(Ratios(4, 8, own=4)) == others.at(Ratios(4, 8))


def test_steps_by_heads_by_hand():
    """A head's update is n inputs, d outputs: ‖UVᵀ‖_R = √(n/d), and √n times that for Muon-Kimi. Stacked, the heads'
    updates share the direction in which they read the stream, so that √(n/d) of them have √(n/d) in ‖·‖₂, too.
    """
    for name, rate in (("muon", (M / N) ** HALF), ("muon_kimi", M**HALF / N)):
        row = exponents(FAMILIES[name], Role.HIDDEN, 2, None, M)
        assert (row.lr, row.weight_decay, row.init_var) == (rate, ONE / rate, ONE / N)
    query = parameter("attention", heads=16)
    key = parameter("attention", heads=8, side="kv")
    plain, by_head = (
        derive(RecipeConfig(weight_decay=0.1), 1024, 4, sides={"kv": 2.0, "head": 1.0}, per_head=p)
        for p in (False, True)
    )
    assert by_head.of(query).lr == by_head.of(key).lr == pytest.approx(2**-7 / 4)
    assert by_head.of(query).weight_decay == pytest.approx(0.4)
    assert plain.of(query).lr == pytest.approx(2**-7 / 2)
    assert by_head.of(key).init_std == plain.of(key).init_std
    assert by_head.of(parameter("mlp")) == plain.of(parameter("mlp"))


def test_a_gain_that_all_heads_share_by_hand():
    """Its m entries do not grow with the width: AdamW's rate is that of other vectors, but the gradient's entries
    add up what all heads say, 1/L, where those of a vector of the stream share it."""
    weight = solve(Role.HIDDEN_BIAS, 2, M)
    assert (weight.norm, weight.update, weight.gradient_entry) == (ONE, ONE, ONE / (M * L))
    assert exponents(FAMILIES["adamw"], Role.HIDDEN_BIAS, 2, M).lr == ONE
    assert exponents(FAMILIES["sgd"], Role.HIDDEN_BIAS, 2, M).lr == M * L
    assert solve(Role.HIDDEN_BIAS, 2).gradient_entry == ONE / (N * L)


def test_routers_and_experts_by_hand():
    """A router's row: n inputs, one output. An expert: an MLP's matrix. A step of either changes the loss by 1/E of
    what the block's does, so that its gradient, and all that is measured by it, goes as 1/E; the squared gradient of
    single tokens, averaged over all, goes as 1/E too."""
    router, expert = solve(Role.HIDDEN, 2, ONE, routed=True), solve(Role.HIDDEN, 2, routed=True)
    usual = solve(Role.HIDDEN, 2)
    assert (router.init_var, router.norm, router.update) == (ONE / N**2, ONE, ONE)
    assert (router.gradient_entry, router.hessian_entry) == (ONE / (E * L), ONE / (E * L**2))
    assert (expert.init_var, expert.norm, expert.update) == (usual.init_var, usual.norm, usual.update)
    assert (expert.gradient, expert.gradient_entry) == (ONE / (E * L), ONE / (E * N * L))
    assert expert.hessian_entry == usual.hessian_entry / E
    assert expert.role_gradient == usual.role_gradient / E**HALF
    rates = {"adamw": ONE / N, "muon": N**-HALF, "muon_kimi": ONE / N, "sgd": L * E / N, "sso": ONE}
    for name, family in FAMILIES.items():
        of_router = exponents(family, Role.HIDDEN, 2, ONE, routed=True)
        assert of_router.lr == rates.get(name, of_router.lr), name
        row, dense = exponents(family, Role.HIDDEN, 2, routed=True), exponents(family, Role.HIDDEN, 2)
        assert row.lr == dense.lr * (E if name == "sgd" else ONE), name
        options = {"eps": E**-2 if name == "shampoo" else E**-1, "rho": ONE, "sphere": ONE}
        assert row.scaled == {option: scale * options[option] for option, scale in dense.scaled.items()}, name


def test_the_number_of_experts_counts_from_the_base():
    """Twice the base's: SGD's rates by 2, Muon's and σ as they are. Under SP, and without a base: nothing."""
    values = {}
    for parametrization, base, rule in (("mup", 4, "sgd"), ("mup", 4, "muon"), ("mup", None, "sgd"), ("sp", 4, "sgd")):
        recipe = {"parametrization": parametrization, "base_experts": base, "optimizer": rule}
        model = {"width": 256, "depth": 4, "experts": 8, "bias": False}
        config = Config.from_plain({"model": model, "recipe": recipe, "data": {"tokenizer": "bytes"}})
        router, expert = parameter("router", side="experts", routed=True), parameter("mlp", routed=True)
        found = config.derive()
        values[parametrization, base, rule] = (found.of(router).init_std, found.of(router).lr, found.of(expert).lr)
    assert values.pop(("mup", 4, "sgd")) == (0.02, 2**-6, 2**-6)
    assert set(values.values()) == {(0.02, 2**-7, 2**-7)}


def test_scales_know_what_dominates():
    assert largest(ONE, M) == largest(M, ONE) == M
    assert largest(M, N) == N
    assert str(M / N**2) == "n^-2 m"
    assert largest(N, N * L) == N * L
    with pytest.raises(ValueError, match="neither"):
        largest(N, L)
    assert str(N ** Fraction(-1, 2) * L) == "n^-1/2 L"


def parameter(label, role=Role.HIDDEN, shape=(512, 512), **more):
    return ParameterInfo(name="w", role=role, label=label, shape=shape, **more)


def test_base_values_of_roles_and_labels_multiply_and_are_scaled_as_the_others():
    base = {"hidden": {"lr": 0.5}, "mlp": {"lr": 4.0, "init_std": 3.0, "weight_decay": 0.0}, "head": {"eps": 100.0}}
    plain = RecipeConfig(optimizer="adamw", weight_decay=0.1)
    own = replace(plain, base={key: BaseFactors(**factors) for key, factors in base.items()})
    one, two = derive(plain, 512, 8), derive(own, 512, 8)
    mlp, attention = parameter("mlp"), parameter("attention")
    assert (two.of(mlp).lr, two.of(attention).lr) == (2 * one.of(mlp).lr, 0.5 * one.of(attention).lr)
    assert (two.of(mlp).init_std, two.of(mlp).weight_decay) == (pytest.approx(3 * one.of(mlp).init_std), 0.0)
    head = parameter("head", Role.OUTPUT)
    assert two.of(head).scaled == {"eps": pytest.approx(100 * one.of(head).scaled["eps"])}
    assert two.of(head).lr == one.of(head).lr


def test_vectors_are_decayed_only_if_asked():
    vectors = [parameter(label, Role.HIDDEN_BIAS, (512,)) for label in ("gain", "bias")]
    for asked, expected in (({}, [0.0, 0.1]), ({"decay_gains": True}, [0.1, 0.1]), ({"decay_vectors": False}, [0, 0])):
        recipe = derive(RecipeConfig(weight_decay=0.1, **asked), 512, 8)
        assert [recipe.of(info).weight_decay for info in vectors] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("rule", "a"), [("spectral", 0), ("sqrt_width", 0.5), ("inverse_width", 1), ("inverse_square", 2)]
)
def test_rules_of_weight_decay_scale_what_a_step_removes_of_hidden_matrices_alone(rule, a):
    config = RecipeConfig(optimizer="adamw", weight_decay=0.1, weight_decay_rule=rule)
    base, wide = (derive(config, width, 4) for width in (256, 1024))
    removed = {role: (w := wide.values[role]).lr * w.weight_decay / (config.lr * 0.1) for role in Role}
    assert base.values == derive(replace(config, weight_decay_rule="spectral"), 256, 4).values
    assert removed == pytest.approx({role: 4.0**-a if role is Role.HIDDEN else 1.0 for role in Role})


def test_the_control_parametrizations():
    """nanoGPT: 0.02 and 0.02/√(2L), decay on matrices alone. SP with the embeddings' rate times width alone."""
    base = {"optimizer": "adamw", "weight_decay": 0.1}
    sp, gpt2, control = (
        derive(RecipeConfig(**base, parametrization=name), 1024, 8) for name in ("sp", "gpt2", "sp_embedding")
    )
    last, first = parameter("mlp", closes_branch=True), parameter("mlp")
    assert (gpt2.of(last).init_std, gpt2.of(first).init_std) == (pytest.approx(0.02 / 4), 0.02)
    vectors = [parameter(label, Role.HIDDEN_BIAS, (512,)) for label in ("gain", "bias")]
    assert [gpt2.of(info).weight_decay for info in (first, *vectors)] == [0.1, 0.0, 0.0]
    assert {role for role in Role if control.values[role] != sp.values[role]} == {Role.INPUT}
    embedding = control.values[Role.INPUT]
    assert (embedding.lr, embedding.lr * embedding.weight_decay) == (
        sp.values[Role.INPUT].lr * 4,
        sp.values[Role.INPUT].lr * 0.1,
    )
    assert sp.multipliers == gpt2.multipliers == control.multipliers == Multipliers()
    factors = {"output_multiplier": 4.0, "input_multiplier": 2.0, "base": {"hidden": {"init_std": 1.4}}}
    own = derive(RecipeConfig(**base, parametrization="gpt2", **factors), 1024, 8)
    assert (own.multipliers, own.of(last), own.of(first)) == (gpt2.multipliers, gpt2.of(last), gpt2.of(first))


def test_clipping_is_in_units_of_each_roles_gradients():
    """‖G‖ of a role: inside blocks L matrices of 1/L each, so 1/√L; outside n^-1/2. Vectors inside blocks have both."""
    recipe = derive(RecipeConfig(optimizer="sgd"), 1024, 64)
    found = {role: recipe.values[role].gradient for role in Role}
    expected = {
        Role.INPUT: 1 / 2,
        Role.OUTPUT: 1 / 2,
        Role.HIDDEN: 1 / 4,
        Role.INPUT_BIAS: 1 / 2,
        Role.HIDDEN_BIAS: 1 / 8,
    }
    assert found == pytest.approx(expected)
    for plain in (RecipeConfig(scale_clip=False), RecipeConfig(parametrization="sp")):
        assert {values.gradient for values in derive(plain, 1024, 64).values.values()} == {1.0}


def test_attention_logits_are_divided_by_d_beyond_the_heads_of_the_base():
    for parametrization, expected in (("mup", 0.5), ("sp", 1.0)):
        recipe = RecipeConfig(parametrization=parametrization)
        for heads, factor in ((4, expected), (None, 1.0)):
            model = ModelConfig(width=1024, heads=heads)
            assert Config(model=model, recipe=recipe).derive().multipliers.attention == factor
    explicit = ModelConfig(width=1024, heads=4, attention_scale="1/sqrt(d)")
    assert Config(model=explicit).derive().multipliers.attention == 1.0


def test_the_longer_side_of_an_embedding_is_its_real_one():
    """Muon-Kimi's step has √max(V, n): with V beyond both widths it does not grow, and so the rate must not fall."""
    config = RecipeConfig(optimizer="muon_kimi", pure=True, base_width=256)
    rates = {V: derive(config, 1024, 4).of(parameter("head", Role.OUTPUT, (V, 1024))).lr for V in (128, 512, 50304)}
    assert {V: rate / config.lr for V, rate in rates.items()} == pytest.approx({128: 1.0, 512: 2**0.5, 50304: 2.0})
