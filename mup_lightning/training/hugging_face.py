"""A model as the architecture of transformers that computes the same function: GPT-2, or Llama where it has RoPE.

A plain Hugging Face model takes the multipliers folded into its weights:

    embeddings             × α_in
    a branch's last layer  × α_res               (weight and bias)
    final norm             × α_out / α_in        where the output matrix is the token embedding, which has α_in by then
                           × α_out               where it is a matrix of its own
    queries                × √d · scale          where attention logits are not scaled by 1/√d

Nothing is lost: both compute the same function, up to rounding.
"""

from typing import Any

import torch

from mup_lightning.config.model import ModelConfig
from mup_lightning.errors import UserError
from mup_lightning.model.gpt2 import GPT2
from mup_lightning.model.layers import NORM_EPS

END_OF_TEXT = 50256
"""GPT-2's only special token."""

COMMON = {"layer_norm": True, "qk_norm": False, "parallel": False, "logit_cap": None}
NEEDS: dict[str, dict[str, Any]] = {
    "GPT-2": COMMON | {"position": "learned", "norm": "layernorm", "gated": False},
    "Llama": COMMON | {"position": "rope", "norm": "rmsnorm", "gated": True},
}
"""Architecture -> the switches of our model that it is."""

ACTIVATIONS = {"gelu": "gelu_new", "relu": "relu", "silu": "silu"}

MATRICES = {
    "attention_norm": ["attention_norm"],
    "attention.qkv": ["q", "k", "v"],
    "attention.q": ["q"],
    "attention.kv": ["k", "v"],
    "attention.out": ["out"],
    "mlp_norm": ["mlp_norm"],
    "mlp.gate_up": ["gate", "up"],
    "mlp.up": ["up"],
    "mlp.down": ["down"],
}
"""Layer of a block -> what is stacked in it, of equal shapes."""

GPT2_LAYERS = {
    "attention_norm": "ln_1",
    "out": "attn.c_proj",
    "mlp_norm": "ln_2",
    "up": "mlp.c_fc",
    "down": "mlp.c_proj",
}
LLAMA_LAYERS = {
    **{"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm", "out": "self_attn.o_proj"},
    **{name: f"self_attn.{name}_proj" for name in ("q", "k", "v")},
    **{name: f"mlp.{name}_proj" for name in ("gate", "up", "down")},
}
"""Our matrices and norms inside a block -> Hugging Face's."""


def architecture(config: ModelConfig) -> str:
    """The name of the architecture that computes what such a model does; raises UserError, with the switch, if none."""
    name = config.family
    wrong = [key for key, value in NEEDS[name].items() if getattr(config, key) != value]
    if name == "GPT-2" and config.kv_dim < config.width:
        wrong.append("heads_per_kv" if config.kv_heads is None else "kv_heads")
    for key in wrong:
        raise UserError(
            f"the model was trained with model.{key} {str(getattr(config, key)).lower()}, which Hugging Face's "
            f"{name} cannot express; export it as it is: --format plain"
        )
    return name


def description(model: GPT2) -> Any:
    """The model's shape and switches as a transformers.GPT2Config or LlamaConfig.

    Raises:
        UserError: neither can express a switch, which is named, or transformers is not installed.
    """
    config, name = model.config, architecture(model.config)
    try:
        from transformers import GPT2Config, LlamaConfig
    except ImportError:
        raise UserError(
            "exporting to Hugging Face needs transformers, which is not installed: pip install "
            "'mup-lightning[export]', or export the parameters as they are: --format plain"
        ) from None
    special = END_OF_TEXT if model.vocab_size > END_OF_TEXT else None
    common: dict[str, Any] = {
        "vocab_size": model.vocab_size,
        "tie_word_embeddings": config.tied,
        "bos_token_id": special,
        "eos_token_id": special,
    }
    if name == "GPT-2":
        return GPT2Config(
            architectures=["GPT2LMHeadModel"],
            n_positions=config.context,
            n_embd=config.width,
            n_layer=config.depth,
            n_head=config.width // config.head_dim,
            n_inner=config.hidden,
            activation_function=ACTIVATIONS[config.activation],
            layer_norm_epsilon=NORM_EPS,
            resid_pdrop=config.dropout,
            embd_pdrop=config.dropout,
            attn_pdrop=config.dropout,
            **common,
        )
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        max_position_embeddings=config.context,
        hidden_size=config.width,
        num_hidden_layers=config.depth,
        num_attention_heads=config.width // config.head_dim,
        num_key_value_heads=config.kv_dim // config.head_dim,
        intermediate_size=config.hidden,
        hidden_act=ACTIVATIONS[config.activation],
        rms_norm_eps=NORM_EPS,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_base},
        attention_bias=config.bias,
        mlp_bias=config.bias,
        attention_dropout=config.dropout,
        **common,
    )


@torch.no_grad()
def weights(model: GPT2) -> dict[str, torch.Tensor]:
    """The content of model.safetensors: name -> float32 tensor, with all multipliers folded in."""
    config, m, ours = model.config, model.multipliers, model.state_dict()
    llama = architecture(config) == "Llama"
    last = m.output / m.input if config.tied else m.output
    tensors = {"embed_tokens.weight" if llama else "wte.weight": ours["token.weight"][: model.vocab_size] * m.input}
    if not llama:
        tensors["wpe.weight"] = ours["position.weight"] * m.input
    tensors[f"{'norm' if llama else 'ln_f'}.weight"] = ours["final_norm.weight"] * last
    if not llama:
        tensors["ln_f.bias"] = ours.get("final_norm.bias", torch.zeros(config.width)) * last
    for number in range(config.depth):
        block = _llama_block(model, number) if llama else _gpt2_block(model, number)
        tensors |= {f"{'layers' if llama else 'h'}.{number}.{name}": tensor for name, tensor in block.items()}
    tensors = {f"{'model' if llama else 'transformer'}.{name}": tensor for name, tensor in tensors.items()}
    if not config.tied:
        tensors["lm_head.weight"] = ours["head.weight"][: model.vocab_size]
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _folded(model: GPT2, number: int) -> dict[str, tuple[torch.Tensor, torch.Tensor | None]]:
    """Norms and matrices of a block, each with its bias, if it has one, and under no multiplier any more."""
    config, m, ours = model.config, model.multipliers, model.state_dict()
    scale = m.attention * (config.head_dim**-0.5 if config.attention_scale == "1/d" else 1)
    factors = {"q": scale, "out": m.residual, "down": m.residual}
    found = {}
    for layer, names in MATRICES.items():
        weight, bias = (ours.get(f"blocks.{number}.{layer}.{kind}") for kind in ("weight", "bias"))
        if weight is None:
            continue
        biases = (None,) * len(names) if bias is None else bias.chunk(len(names))
        for name, its, own in zip(names, weight.chunk(len(names)), biases, strict=True):
            factor = factors.get(name, 1.0)
            found[name] = its * factor, None if own is None else own * factor
    return found


def _llama_block(model: GPT2, number: int) -> dict[str, torch.Tensor]:
    found = _folded(model, number)
    tensors = {f"{LLAMA_LAYERS[name]}.weight": weight for name, (weight, _) in found.items()}
    return tensors | {f"{LLAMA_LAYERS[name]}.bias": bias for name, (_, bias) in found.items() if bias is not None}


def _gpt2_block(model: GPT2, number: int) -> dict[str, torch.Tensor]:
    """GPT-2 always has biases; its linear layers are Conv1D, which keep matrices transposed, and Q, K, V are one."""
    found = {
        name: (weight, torch.zeros(len(weight)) if bias is None else bias)
        for name, (weight, bias) in _folded(model, number).items()
    }
    tensors: dict[str, torch.Tensor] = {}
    for name, theirs in GPT2_LAYERS.items():
        weight, bias = found[name]
        tensors |= {f"{theirs}.weight": weight.t() if weight.ndim == 2 else weight, f"{theirs}.bias": bias}
    stacked, biases = zip(*(found[name] for name in ("q", "k", "v")), strict=True)
    return tensors | {"attn.c_attn.weight": torch.cat(stacked).t(), "attn.c_attn.bias": torch.cat(biases)}
