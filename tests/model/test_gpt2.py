"""The model as a whole: its loss, its init, its measuring points, and how it is made."""

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
from tests.model.models import MULTIPLIED, TINY, make, shaken, windows


def test_attention_scale_is_of_the_head_dimension():
    a, b = make(attention_scale="1/d"), make()
    assert a.blocks[0].attention.scale == pytest.approx(1 / 8)
    assert b.blocks[0].attention.scale == pytest.approx(8**-0.5)


def test_padding_symbols_do_not_exist_for_the_loss():
    model = make()
    window = windows()
    before = model.loss(window)
    before.backward()
    assert model.token.weight.shape[0] == 128
    assert (model.token.weight.grad[101:] == 0).all()
    with torch.no_grad():
        model.token.weight[101:] = 1e4
    assert model.loss(window).item() == before.item()
    assert model(window[:, :-1]).shape[-1] == 101


def problem(dtype):
    """Features, weights with rows of padding, and targets."""
    generator = torch.Generator().manual_seed(0)
    features, weight = (torch.randn(rows, 8, generator=generator, dtype=dtype, requires_grad=True) for rows in (30, 64))
    return features, weight, torch.randint(50, (30,), generator=generator)


@pytest.mark.parametrize(
    ("chunk", "cap", "z_loss", "compiled"),
    [*product((1, 7, 30, 1000), (None, 3.0), (0.0, 0.1), (False,)), (30, None, 0.0, True), (7, 3.0, 0.1, True)],
)
def test_chunked_loss_and_gradients_equal_the_whole(chunk, cap, z_loss, compiled):
    """Against torch's cross-entropy on whole logits, in float64."""
    options = {"chunk": chunk, "cap": cap, "z_loss": z_loss, "compiled": compiled}
    h, w, target = problem(torch.float64)
    loss, rms = cross_entropy(h, w, target, 50, measure=True, **options)
    ours = torch.autograd.grad(3 * loss, (h, w))
    logits = (h @ w.t())[:, :50]
    if cap:
        logits = cap * torch.tanh(logits / cap)
    reference = F.cross_entropy(logits, target)
    theirs = torch.autograd.grad(3 * (reference + z_loss * logits.logsumexp(1).square().mean()), (h, w))
    with torch.no_grad():
        again = cross_entropy(h, w, target, 50, **options)[0]
    wanted = (reference, logits.square().mean().sqrt(), reference, *theirs)
    torch.testing.assert_close((loss, rms, again, *ours), wanted, atol=1e-12, rtol=0)


@pytest.mark.parametrize("compiled", [False, True])
def test_chunked_loss_under_autocast_is_close_to_float32(compiled):
    h, w, target = problem(torch.float32)
    exact = torch.autograd.grad(cross_entropy(h, w, target, 50)[0], (h, w))
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = cross_entropy(h.bfloat16(), w, target, 50, chunk=7, compiled=compiled)
    assert loss.dtype == torch.float32
    for found, wanted in zip(torch.autograd.grad(loss, (h, w)), exact, strict=True):
        assert found.dtype == torch.float32
        assert (found - wanted).norm() / wanted.norm() < 2e-2


def test_loss_is_the_mean_over_capped_logits():
    """Without a cap transformers says so (test_hugging_face.py)."""
    model, window = shaken(logit_cap=0.5), windows()
    wanted = F.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())
    torch.testing.assert_close(model.loss(window), wanted)


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
    model, window = shaken(MULTIPLIED), windows()
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


def test_tied_is_refused_where_input_and_output_differ():
    recipe = derive(RecipeConfig(), 32, 3)
    apart = {**recipe.values, Role.OUTPUT: recipe.values[Role.HIDDEN]}
    with pytest.raises(UserError, match=r"model\.tied.*values of rule, .*\beps\b.*; set model\.tied false"):
        build(ModelConfig(**TINY), type(recipe)(apart, recipe.multipliers), 0)


def test_many_shapes_are_compiled_in_one_process(monkeypatch):
    """As in a sweep; torch's own limit is 8 variants of a function."""
    import torch._dynamo

    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)
    torch.compiler.reset()
    for heads in range(1, 10):
        model = make(depth=1, heads=heads, width=8 * heads)
        model.compile(backend="eager")
        model.loss(torch.zeros(2, 17, dtype=torch.int64)).backward()
    torch.compiler.reset()
