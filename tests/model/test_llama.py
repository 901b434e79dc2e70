"""Llama's blocks against Hugging Face's LlamaForCausalLM, and the switches between GPT-2 and Llama."""

import pytest
import torch
import torch.nn.functional as F

from mup_lightning.config.model import ModelConfig
from mup_lightning.config.schema import Config
from mup_lightning.errors import UserError
from mup_lightning.model.gpt2 import build
from mup_lightning.model.layers import rotation
from mup_lightning.spectral.roles import Role
from tests.families import LLAMA
from tests.model.test_gpt2 import shake


def make(**switches):
    """A model whose multipliers are all 1."""
    shape = {"width": 32, "depth": 3, "heads": 4, "context": 16, **LLAMA, **switches}
    recipe = {"init_std": 0.2, "base_width": shape["width"], "base_depth": shape["depth"]}
    config = Config.from_plain({"model": shape, "recipe": recipe, "data": {"tokenizer": "bytes"}})
    model = build(config.model, config.derive(), seed=0).eval()
    shake(model)
    return model


def shape(config):
    """What transformers calls the shape of a model with rotary embeddings."""
    return {
        "vocab_size": 256,
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.width // config.head_dim,
        "num_key_value_heads": config.kv_dim // config.head_dim,
        "intermediate_size": config.hidden,
        "max_position_embeddings": config.context,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base},
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": config.tied,
    }


def to_hugging_face(model):
    """An independent LlamaForCausalLM with the same weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = model.config
    other = LlamaForCausalLM(
        LlamaConfig(
            **shape(config),
        )
    ).eval()
    ours = model.state_dict()
    state = {
        "model.embed_tokens.weight": ours["token.weight"],
        "model.norm.weight": ours["final_norm.weight"],
        "lm_head.weight": ours["token.weight" if config.tied else "head.weight"],
    }
    for layer in range(config.depth):
        mine, theirs = f"blocks.{layer}.", f"model.layers.{layer}."
        if config.grouped:
            q = ours[f"{mine}attention.q.weight"]
            k, v = ours[f"{mine}attention.kv.weight"].split(config.kv_dim)
        else:
            q, k, v = ours[f"{mine}attention.qkv.weight"].split(config.width)
        gate, up = ours[f"{mine}mlp.gate_up.weight"].split(config.hidden)
        named = {"self_attn.q_proj": q, "self_attn.k_proj": k, "self_attn.v_proj": v, "mlp.gate_proj": gate}
        named |= {"mlp.up_proj": up, "mlp.down_proj": ours[f"{mine}mlp.down.weight"]}
        named |= {"self_attn.o_proj": ours[f"{mine}attention.out.weight"]}
        named |= {"input_layernorm": ours[f"{mine}attention_norm.weight"]}
        named |= {"post_attention_layernorm": ours[f"{mine}mlp_norm.weight"]}
        state |= {f"{theirs}{name}.weight": tensor for name, tensor in named.items()}
    other.load_state_dict(state)
    return other


SWITCHES = [
    {},
    {"tied": False},
    {"heads_per_kv": 1},
    {"kv_heads": 1, "mlp_ratio": 2.75},
    {"rope_base": 5e5, "width": 48},
]


@pytest.mark.parametrize("switches", SWITCHES)
def test_logits_equal_hugging_face(switches):
    model = make(**switches)
    other = to_hugging_face(model)
    tokens = torch.randint(256, (2, 16), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        ours, theirs = model(tokens), other(tokens).logits
    assert theirs.std() > 0.5
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("switches", [{}, {"tied": False}])
def test_gradients_equal_hugging_face_in_float64(switches):
    """Of the loss, with respect to every parameter; ours comes in chunks, theirs from whole logits."""
    model = make(**switches).double()
    other = to_hugging_face(model).double()
    window = torch.randint(256, (2, 17), generator=torch.Generator().manual_seed(2))
    loss = model.loss(window)
    loss.backward()
    reference = F.cross_entropy(other(window[:, :-1]).logits.flatten(0, 1), window[:, 1:].flatten())
    reference.backward()
    assert loss.item() == pytest.approx(reference.item(), abs=1e-6)  # theirs normalises in float32
    theirs = {name: parameter.grad for name, parameter in other.named_parameters()}
    wanted = {"token.weight": theirs["model.embed_tokens.weight"], "final_norm.weight": theirs["model.norm.weight"]}
    if model.head is not None:
        wanted["head.weight"] = theirs["lm_head.weight"]
    for layer in range(3):

        def joined(*names, at=f"model.layers.{layer}."):
            return torch.cat([theirs[f"{at}{name}.weight"] for name in names])

        wanted |= {
            f"blocks.{layer}.{mine}.weight": joined(*names)
            for mine, names in {
                "attention_norm": ["input_layernorm"],
                "attention.q": ["self_attn.q_proj"],
                "attention.kv": ["self_attn.k_proj", "self_attn.v_proj"],
                "attention.out": ["self_attn.o_proj"],
                "mlp_norm": ["post_attention_layernorm"],
                "mlp.gate_up": ["mlp.gate_proj", "mlp.up_proj"],
                "mlp.down": ["mlp.down_proj"],
            }.items()
        }
    assert wanted.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().max() > 1e-4, name
        torch.testing.assert_close(parameter.grad, wanted[name], atol=1e-6, rtol=0, msg=name)


def test_rope_depends_on_distances_alone():
    """Attention to the same tokens, some positions later, with what came before it out of reach."""
    model = make(depth=1).double()
    block, x = model.blocks[0], torch.randn(1, 4, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    near, far = (
        block.attention(x, rotation(torch.arange(start, start + 4), 8, 10000.0, torch.float64)) for start in (0, 1000)
    )
    torch.testing.assert_close(near, far, atol=1e-4, rtol=0)
    assert not torch.allclose(near, block.attention(x), atol=1e-2)


@pytest.mark.parametrize(
    ("switches", "gone", "new"),
    [
        ({"position": "rope"}, {"position.weight"}, set()),
        ({"norm": "rmsnorm"}, {"final_norm.bias", "blocks.0.mlp_norm.bias", "blocks.0.attention_norm.bias"}, set()),
        ({"qk_norm": True, "qk_gain": True}, set(), {"blocks.0.attention.q_gain", "blocks.0.attention.k_gain"}),
        ({"parallel": True}, set(), set()),
        ({"activation": "silu"}, set(), set()),
        (
            {"gated": True},
            {"blocks.0.mlp.up.weight", "blocks.0.mlp.up.bias"},
            {"blocks.0.mlp.gate_up.weight", "blocks.0.mlp.gate_up.bias"},
        ),
        (
            {"kv_heads": 2},
            {"blocks.0.attention.qkv.weight", "blocks.0.attention.qkv.bias"},
            {f"blocks.0.attention.{name}.{kind}" for name in ("q", "kv") for kind in ("weight", "bias")},
        ),
    ],
)
def test_each_switch_alone_is_a_model_too(switches, gone, new):
    plain, model = (make(**dict.fromkeys(LLAMA, None) | GPT2 | {"depth": 1} | more) for more in ({}, switches))
    names, others = set(plain.parameter_info), set(model.parameter_info)
    assert (names - others, others - names) == (gone, new)
    tokens = torch.randint(256, (2, 16), generator=torch.Generator().manual_seed(2))
    assert not torch.allclose(model(tokens), plain(tokens), atol=1e-3)
    model.loss(torch.cat((tokens, tokens[:, :1]), 1)).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


GPT2 = {key: getattr(ModelConfig(), key) for key in LLAMA}


@pytest.mark.parametrize("switches", [GPT2, LLAMA])
def test_no_sequences_have_no_logits(switches):
    """A process that has run out of validation windows takes part in the forward pass."""
    assert make(**switches)(torch.empty(0, 16, dtype=torch.int64)).shape == (0, 16, 256)


def test_blocks_compile_as_a_whole():
    """In one graph without breaks, and to the same numbers."""
    plain, compiled = (make(qk_norm=True, qk_gain=True) for _ in range(2))
    for block in compiled.blocks:
        block.compile(backend="aot_eager", fullgraph=True)
    window = torch.randint(256, (2, 17), generator=torch.Generator().manual_seed(2))
    for model in (plain, compiled):
        model.loss(window).backward()
    for (name, ours), theirs in zip(plain.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(theirs.grad, ours.grad, atol=1e-6, rtol=0, msg=name)


def test_every_parameter_has_its_role():
    model = make(tied=False, qk_norm=True, qk_gain=True)
    for name, info in model.parameter_info.items():
        if name.startswith("blocks."):
            vector = "norm" in name or "gain" in name
            assert info.role == (Role.HIDDEN_BIAS if vector else Role.HIDDEN), name
            assert info.side == ("kv" if ".kv." in name else "head" if "_gain" in name else ""), name
            assert info.blocks == (2 if ".kv." in name or "gate_up" in name else 1), name
    assert model.parameter_info["blocks.1.attention.kv.weight"].block_shape == (16, 32)
    assert model.parameter_info["blocks.1.mlp.gate_up.weight"].block_shape == (112, 32)


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        (
            {"width": 96, "heads": 6, "kv_heads": 4},
            r"model\.kv_heads is 4, which does not divide the 6 heads.*2, 3, 6",
        ),
        ({"width": 96, "heads": 2, "kv_heads": 4}, r"model\.kv_heads is 4, which does not divide the 2 heads"),
        ({"width": 36, "heads": 4, "position": "rope"}, r"model\.position is rope, .* but a head has 9"),
        ({"width": 64, "qk_gain": True}, r"model\.qk_gain is true, but model\.qk_norm is false"),
        ({"width": 100, "mlp_ratio": 2.667}, r"model\.mlp_ratio 2\.667 times model\.width 100 is no whole .* 2\.67$"),
        ({"width": 64, "mlp_ratio": 0.001}, r"no whole number of hidden units"),
    ],
)
def test_impossible_shapes_are_refused_by_name(switches, message):
    with pytest.raises(UserError, match=message):
        ModelConfig(**switches)


@pytest.mark.parametrize(
    ("switches", "width", "kv_dim"),
    [
        ({"head_size": 64, "heads_per_kv": 4}, 256, 64),
        ({"head_size": 64, "heads_per_kv": 4}, 128, 64),  # two heads
        ({"head_size": 64, "heads_per_kv": 4}, 1600, 1600),  # 25 heads: five could share, four cannot
        ({"head_size": 16, "kv_heads": 2}, 256, 32),
        ({"heads": 4, "kv_heads": 2}, 256, 128),
        ({}, 256, 256),
    ],
)
def test_the_width_of_keys_and_values(switches, width, kv_dim):
    assert ModelConfig(width=width, **switches).kv_dim == kv_dim
