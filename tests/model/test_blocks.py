"""Blocks of every family, and the switches between them."""

import re

import pytest
import torch

from mup_lightning.config.model import ModelConfig
from mup_lightning.model.layers import rotation
from mup_lightning.spectral.roles import Role
from tests.families import FAMILIES, LLAMA, MIXTRAL
from tests.model.models import make, shaken, windows

NONE = "(?!)"
SWITCHES = [
    # switches, and patterns of the parameters that go and come
    ({"layer_norm": False}, "norm", NONE),
    ({"bias": False}, "bias$", NONE),
    ({"qk_norm": True}, NONE, NONE),
    ({"attention_scale": "1/d"}, NONE, NONE),
    ({"mlp_ratio": 2}, NONE, NONE),
    ({"position": "rope"}, r"position\.weight", NONE),
    ({"norm": "rmsnorm"}, r"norm\.bias", NONE),
    ({"qk_norm": True, "qk_gain": True}, NONE, r"attention\.[qk]_gain"),
    ({"parallel": True}, NONE, NONE),
    ({"activation": "silu"}, NONE, NONE),
    ({"gated": True}, r"mlp\.up\.", r"mlp\.gate_up\.(weight|bias)"),
    ({"kv_heads": 2}, r"attention\.qkv\.", r"attention\.(q|kv)\.(weight|bias)"),
]


@pytest.mark.parametrize(("switches", "gone", "new"), SWITCHES)
def test_each_switch_alone_changes_what_it_says(switches, gone, new):
    plain, model = (shaken(depth=1, **more) for more in ({}, switches))
    names, others = set(plain.parameter_info), set(model.parameter_info)
    assert names - others == {name for name in names if re.search(gone, name)}
    assert others - names == {name for name in others if re.search(new, name)}
    window = windows()
    assert not torch.allclose(model(window[:, :-1]), plain(window[:, :-1]), atol=1e-3)
    model.loss(window).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


ROLES = {
    # the first pattern counts: role, side, matrices, routed
    r"(token|position)\.weight": (Role.INPUT, "", 1, False),
    r"head\.weight": (Role.OUTPUT, "", 1, False),
    r"final_norm\..*": (Role.INPUT_BIAS, "", 1, False),
    r".*_gain": (Role.HIDDEN_BIAS, "head", 1, False),
    r".*(norm\.weight|bias)": (Role.HIDDEN_BIAS, "", 1, False),
    r".*\.qkv\.weight": (Role.HIDDEN, "", 3, False),
    r".*\.kv\.weight": (Role.HIDDEN, "kv", 2, False),
    r".*\.gate_up\.weight": (Role.HIDDEN, "", 2, False),
    r".*\.router\.weight": (Role.HIDDEN, "experts", 1, True),
    r".*\.gate_up": (Role.HIDDEN, "", 8, True),
    r".*\.mlp\.down": (Role.HIDDEN, "", 4, True),
    r".*\.weight": (Role.HIDDEN, "", 1, False),
}
SHAPES = {
    "llama": {"attention.kv.weight": (16, 32), "mlp.gate_up.weight": (112, 32)},
    "mixtral": {"mlp.gate_up": (112, 32), "mlp.down": (32, 112)},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_has_its_role(family):
    gains = {} if family == "gpt2" else {"qk_norm": True, "qk_gain": True}
    found = make(**FAMILIES[family], **gains, tied=False).parameter_info
    for name, info in found.items():
        wanted = next(known for pattern, known in ROLES.items() if re.fullmatch(pattern, name))
        assert (info.role, info.side, info.blocks, info.routed) == wanted, name
        assert info.closes_branch == bool(re.search(r"(attention\.out|mlp\.down)(\.weight)?$", name)), name
    for name, shape in SHAPES.get(family, {}).items():
        assert found[f"blocks.1.{name}"].block_shape == shape
    if family == "mixtral":
        labels = [found[f"blocks.1.mlp.{name}"].label for name in ("router.weight", "gate_up", "down")]
        assert labels == ["router", "mlp", "mlp"]


def test_rope_depends_on_distances_alone():
    """Attention to the same tokens, some positions later, with what came before it out of reach."""
    model = shaken(**LLAMA, depth=1).double()
    block, x = model.blocks[0], torch.randn(1, 4, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    near, far = (
        block.attention(x, rotation(torch.arange(start, start + 4), 8, 10000.0, torch.float64)) for start in (0, 1000)
    )
    torch.testing.assert_close(near, far, atol=1e-4, rtol=0)
    assert not torch.allclose(near, block.attention(x), atol=1e-2)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_sequences_have_no_logits(family):
    """A process that has run out of validation windows takes part in the forward pass."""
    assert make(**FAMILIES[family])(torch.empty(0, 16, dtype=torch.int64)).shape == (0, 16, 101)


@pytest.mark.parametrize(
    "switches",
    [LLAMA | {"qk_norm": True, "qk_gain": True}, MIXTRAL, MIXTRAL | {"mlp_ratio": 0.65625}],
    ids=["llama", "experts, aligned", "experts, group by group"],
)
def test_blocks_compile_as_a_whole(switches):
    """In one graph without breaks, and to the same numbers."""
    plain, compiled = (shaken(**switches) for _ in range(2))
    for block in compiled.blocks:
        block.compile(backend="aot_eager", fullgraph=True)
    for model in (plain, compiled):
        model.loss(windows()).backward()
    for (name, ours), theirs in zip(plain.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(theirs.grad, ours.grad, atol=1e-6, rtol=0, msg=name)


@pytest.mark.parametrize(
    ("switches", "width", "head_dim", "kv_dim"),
    [
        *(({"head_size": 64}, *dims) for dims in ((1600, 64, 1600), (128, 64, 128), (96, 48, 96))),
        *(({"head_size": 32}, *dims) for dims in ((32, 32, 32), (64, 32, 64), (1024, 32, 1024))),
        *(({"head_size": 64}, width, width, width) for width in (32, 8)),
        ({"head_size": 64, "heads_per_kv": 4}, 256, 64, 64),
        ({"head_size": 64, "heads_per_kv": 4}, 128, 64, 64),  # two heads
        ({"head_size": 64, "heads_per_kv": 4}, 1600, 64, 1600),  # 25 heads: five could share, four cannot
        ({"head_size": 16, "kv_heads": 2}, 256, 16, 32),
        ({"heads": 4, "kv_heads": 2}, 256, 64, 128),
    ],
)
def test_dimensions_are_the_wanted_ones_or_what_the_width_allows(switches, width, head_dim, kv_dim):
    config = ModelConfig(width=width, **switches)
    assert (config.head_dim, config.kv_dim) == (head_dim, kv_dim)
