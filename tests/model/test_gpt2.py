"""The model as a whole: its loss, its init, its measuring points, and how it is made."""

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
    model = shaken(logit_cap=cap)
    window = windows()
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
