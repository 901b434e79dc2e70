"""The model against Hugging Face's GPT-2, and its switches."""

import subprocess
import sys
from itertools import product

import pytest
import torch
import torch.nn.functional as F

from mup_lightning.config.model import ModelConfig
from mup_lightning.errors import UserError
from mup_lightning.model import taps
from mup_lightning.model.gpt2 import build
from mup_lightning.model.loss import cross_entropy
from mup_lightning.spectral.recipe import RecipeConfig, derive
from mup_lightning.spectral.roles import Role

TINY = {"width": 32, "depth": 3, "heads": 4, "context": 16, "vocab_size": 101}


def make(recipe=None, seed=0, **switches):
    config = ModelConfig(**{**TINY, **switches})
    plain = RecipeConfig(init_std=0.2, base_width=config.width, base_depth=config.depth)  # all multipliers are 1
    recipe = derive(recipe or plain, config.width, config.depth)
    return build(config, recipe, seed)


def shake(model, seed=1):
    """Random values everywhere, also in biases and gains, so that no term of the comparison is trivial."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def to_hugging_face(model):
    """An independent GPT2LMHeadModel with the same weights (its Conv1D keeps matrices transposed)."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = model.config
    other = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.context,
            n_embd=config.width,
            n_layer=config.depth,
            n_head=config.width // config.head_dim,
            activation_function="gelu_new" if config.activation == "gelu" else "relu",
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            tie_word_embeddings=config.tied,
        )
    ).eval()
    ours = model.state_dict()
    names = {"attention_norm": "ln_1", "attention.qkv": "attn.c_attn", "attention.out": "attn.c_proj"}
    names |= {"mlp_norm": "ln_2", "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj"}
    state = {
        "transformer.wte.weight": ours["token.weight"][: config.vocab_size],
        "transformer.wpe.weight": ours["position.weight"],
        "transformer.ln_f.weight": ours["final_norm.weight"],
        "transformer.ln_f.bias": ours["final_norm.bias"],
        "lm_head.weight": ours["token.weight" if config.tied else "head.weight"][: config.vocab_size],
    }
    for layer in range(config.depth):
        for mine, theirs in names.items():
            weight = ours[f"blocks.{layer}.{mine}.weight"]
            state[f"transformer.h.{layer}.{theirs}.weight"] = weight if "norm" in mine else weight.t()
            state[f"transformer.h.{layer}.{theirs}.bias"] = ours[f"blocks.{layer}.{mine}.bias"]
    other.load_state_dict(state)
    return other


@pytest.mark.parametrize("switches", [{}, {"tied": False}, {"activation": "relu"}, {"heads": None}])
def test_logits_equal_hugging_face(switches):
    model = make(**switches).eval()
    shake(model)
    tokens = torch.randint(TINY["vocab_size"], (2, 16), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        ours, theirs = model(tokens), to_hugging_face(model)(tokens).logits
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.5
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_multipliers_are_in_training_and_inference():
    """Against the definition, with the multipliers folded into the weights of a plain model."""
    model = make(RecipeConfig(base_width=8, base_depth=1, input_multiplier=3.0, init_std=0.2)).eval()
    shake(model)
    m = model.multipliers
    assert (m.input, m.residual, m.output) == pytest.approx((3.0, 1 / 3, 1 / 4))
    plain = make().eval()
    state = model.state_dict()
    for name in state:
        if name.startswith(("token", "position")):
            state[name] = state[name] * m.input
        if ".attention.out." in name or ".mlp.down." in name:
            state[name] = state[name] * m.residual
        if name.startswith("final_norm"):
            state[name] = state[name] * m.output / m.input  # the tied output matrix has taken the input's factor
    plain.load_state_dict(state)
    window = torch.randint(TINY["vocab_size"], (2, 17), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(model(window[:, :-1]), plain(window[:, :-1]), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model.loss(window), plain.loss(window), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "switches",
    [{"layer_norm": False}, {"bias": False}, {"qk_norm": True}, {"attention_scale": "1/d"}, {"mlp_ratio": 2}],
)
def test_switches_change_what_they_say(switches):
    model, plain = make(**switches), make()
    names, plain_names = set(model.parameter_info), set(plain.parameter_info)
    if "layer_norm" in switches:
        assert plain_names - names == {name for name in plain_names if "norm" in name}
    elif "bias" in switches:
        assert plain_names - names == {name for name in plain_names if name.endswith("bias")}
    else:
        assert names == plain_names
    tokens = torch.randint(101, (2, 16), generator=torch.Generator().manual_seed(2))
    for m in (model, plain):
        shake(m)
    assert not torch.allclose(model(tokens), plain(tokens), atol=1e-3)


def test_attention_scale_is_of_the_head_dimension():
    a, b = make(attention_scale="1/d"), make()
    assert a.blocks[0].attention.scale == pytest.approx(1 / 8)
    assert b.blocks[0].attention.scale == pytest.approx(8**-0.5)


def test_padding_symbols_do_not_exist_for_the_loss():
    model = make()
    window = torch.randint(101, (2, 17), generator=torch.Generator().manual_seed(2))
    before = model.loss(window)
    before.backward()
    assert model.token.weight.shape[0] == 128
    assert (model.token.weight.grad[101:] == 0).all()
    with torch.no_grad():
        model.token.weight[101:] = 1e4
    assert model.loss(window).item() == before.item()
    assert model(window[:, :-1]).shape[-1] == 101


@pytest.mark.parametrize(
    ("chunk", "cap", "z_loss", "compiled"),
    [*product((1, 7, 30, 1000), (None, 3.0), (0.0, 0.1), (False,)), (30, None, 0.0, True), (7, 3.0, 0.1, True)],
)
def test_chunked_loss_and_gradients_equal_the_whole(chunk, cap, z_loss, compiled):
    """Against torch's cross-entropy on whole logits, in float64."""
    options = {"chunk": chunk, "cap": cap, "z_loss": z_loss, "compiled": compiled}
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(30, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    w = torch.randn(64, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.randint(50, (30,), generator=generator)
    loss, rms = cross_entropy(h, w, target, 50, measure=True, **options)
    (3 * loss).backward()
    ours = h.grad.clone(), w.grad.clone()
    h.grad = w.grad = None
    logits = (h @ w.t())[:, :50]
    if cap:
        logits = cap * torch.tanh(logits / cap)
    reference = F.cross_entropy(logits, target)
    (3 * (reference + z_loss * logits.logsumexp(1).square().mean())).backward()
    torch.testing.assert_close(loss, reference, atol=1e-12, rtol=0)
    torch.testing.assert_close(rms, logits.square().mean().sqrt(), atol=1e-12, rtol=0)
    torch.testing.assert_close(ours[0], h.grad, atol=1e-12, rtol=0)
    torch.testing.assert_close(ours[1], w.grad, atol=1e-12, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(cross_entropy(h, w, target, 50, **options)[0], reference, atol=1e-12, rtol=0)


@pytest.mark.parametrize("compiled", [False, True])
def test_chunked_loss_under_autocast_is_close_to_float32(compiled):
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(30, 8, generator=generator, requires_grad=True)
    w = torch.randn(64, 8, generator=generator, requires_grad=True)
    target = torch.randint(50, (30,), generator=generator)
    cross_entropy(h, w, target, 50)[0].backward()
    exact, h.grad, w.grad = (h.grad, w.grad), None, None
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = cross_entropy(h.bfloat16(), w, target, 50, chunk=7, compiled=compiled)
    loss.backward()
    assert loss.dtype == torch.float32
    assert h.grad.dtype == w.grad.dtype == torch.float32
    for found, wanted in zip((h.grad, w.grad), exact, strict=True):
        assert (found - wanted).norm() / wanted.norm() < 2e-2


@pytest.mark.parametrize("cap", [None, 0.5])
def test_loss_is_the_mean_over_the_logits(cap):
    model = make(logit_cap=cap)
    shake(model)
    window = torch.randint(101, (2, 17), generator=torch.Generator().manual_seed(2))
    wanted = F.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())
    torch.testing.assert_close(model.loss(window), wanted)


def test_every_parameter_has_its_role():
    roles = {name: info.role for name, info in make(tied=False).parameter_info.items()}
    assert roles.pop("token.weight") == roles.pop("position.weight") == Role.INPUT
    assert roles.pop("head.weight") == Role.OUTPUT
    assert roles.pop("final_norm.weight") == roles.pop("final_norm.bias") == Role.INPUT_BIAS
    for name, role in roles.items():
        matrix = name.endswith("weight") and "norm" not in name
        assert role == (Role.HIDDEN if matrix else Role.HIDDEN_BIAS), name
    assert make().parameter_info["blocks.1.attention.qkv.weight"].blocks == 3


def test_initialisation_has_the_recipes_size_and_depends_on_nothing_else():
    model = make(RecipeConfig(base_width=64, init_std=0.02), width=256, heads=None, vocab_size=5000)
    assert model.token.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert model.blocks[0].mlp.up.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert (model.blocks[0].mlp.up.bias == 0).all()
    assert (model.blocks[0].mlp_norm.weight == 1).all()
    deeper = make(RecipeConfig(base_width=64, init_std=0.02), width=256, heads=None, vocab_size=5000, depth=5)
    assert torch.equal(deeper.blocks[2].mlp.up.weight, model.blocks[2].mlp.up.weight)
    assert not torch.equal(model.blocks[1].mlp.up.weight, model.blocks[2].mlp.up.weight)


@pytest.mark.parametrize(("settings", "blocks"), [({}, 4), ({"parametrization": "sp"}, 3)])
def test_gpt2_residual_init_scales_the_last_matrix_of_each_branch_only(settings, blocks):
    """By the blocks of the model under SP, of the base under the recipe, whose multiplier has 1/L already."""
    plain, scaled = (make(RecipeConfig(**settings, gpt2_residual_init=extra)) for extra in (False, True))
    for (name, a), b in zip(plain.named_parameters(), scaled.parameters(), strict=True):
        factor = (2 * blocks) ** -0.5 if name.endswith(("attention.out.weight", "mlp.down.weight")) else 1.0
        torch.testing.assert_close(b, a * factor)


def test_taps_measure_what_they_name():
    """Every recorded norm against the features of a forward pass rebuilt by hand from the model's own layers."""
    model = make(RecipeConfig(base_depth=1, base_width=8, init_std=0.2))
    shake(model)
    window = torch.randint(101, (2, 17), generator=torch.Generator().manual_seed(2))
    recorder = taps.NormRecorder()
    model.loss(window, recorder)
    found = recorder.norms()
    assert set(found) == {(p, layer) for p in taps.POINTS for layer in (range(3) if p in taps.LAYER_POINTS else [None])}

    def rms(x):
        return x.square().mean().sqrt().item()

    tokens, m = window[:, :-1], model.multipliers
    x = m.input * (model.token(tokens) + model.position(torch.arange(16)))
    wanted = {("embedding", None): rms(x)}
    for layer, block in enumerate(model.blocks):
        a = block.attention(block.attention_norm(x))
        x = x + m.residual * a
        b = block.mlp(block.mlp_norm(x))
        x = x + m.residual * b
        wanted |= {("attention", layer): rms(a), ("attention_scaled", layer): rms(m.residual * a)}
        wanted |= {("mlp", layer): rms(b), ("mlp_scaled", layer): rms(m.residual * b), ("residual", layer): rms(x)}
    wanted |= {("final_norm", None): rms(model.final_norm(x)), ("logits", None): rms(model(tokens))}
    for key, value in wanted.items():
        assert found[key] == pytest.approx(value, rel=1e-4), key


def test_taps_at_depth_256():
    model = make(width=8, depth=256, heads=1)
    recorder = taps.NormRecorder()
    model.loss(torch.zeros(1, 17, dtype=torch.int64), recorder)
    assert len(recorder.norms()) == 5 * 256 + 3


def test_tied_is_refused_where_input_and_output_differ():
    recipe = derive(RecipeConfig(), 32, 3)
    apart = {**recipe.values, Role.OUTPUT: recipe.values[Role.HIDDEN]}
    with pytest.raises(UserError, match=r"model\.tied.*values of rule, .*\beps\b.*; set model\.tied false"):
        build(ModelConfig(**TINY), type(recipe)(apart, recipe.multipliers), 0)


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"width": 100, "heads": 7}, r"model\.width is 100 and model\.heads is 7.*try model\.heads 5"),
        ({"width": 97}, r"model\.width 97 has no divisor"),
    ],
)
def test_impossible_shapes_are_refused_by_name(switches, message):
    with pytest.raises(UserError, match=message):
        ModelConfig(**switches)


@pytest.mark.parametrize(
    ("width", "head_size", "head_dim"),
    [(1600, 64, 64), (128, 64, 64), (96, 64, 48), (32, 64, 32), (8, 64, 8), (32, 32, 32), (64, 32, 32), (1024, 32, 32)],
)
def test_head_dimension_is_the_wanted_one_or_what_the_width_allows(width, head_size, head_dim):
    assert ModelConfig(width=width, head_size=head_size).head_dim == head_dim


def test_a_model_is_laid_out_without_importing_torchs_compiler():
    """torch's own init does so on the meta device, which takes a second; and it would be overwritten anyway."""
    code = """
import sys
from mup_lightning.config.model import ModelConfig
from mup_lightning.model.gpt2 import build
from mup_lightning.spectral.recipe import RecipeConfig, derive
for device in ("meta", "cpu"):
    config = ModelConfig(width=16, depth=1, context=8, heads=1, vocab_size=64)
    build(config, derive(RecipeConfig(), 16, 1), 0, device=device)
sys.exit("torch._inductor" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_many_shapes_are_compiled_in_one_process(monkeypatch):
    """As in a sweep; torch's own limit is 8 variants of a function."""
    import torch._dynamo

    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)
    torch.compiler.reset()
    for heads in range(1, 11):
        config = ModelConfig(**TINY | {"depth": 1, "heads": heads, "width": 8 * heads})
        model = build(config, derive(RecipeConfig(), config.width, 1), 0)
        model.compile(backend="eager")
        model.loss(torch.zeros(2, 17, dtype=torch.int64)).backward()
    torch.compiler.reset()
