"""A trained model as a plain Hugging Face GPT-2: the multipliers go into the weights, and nothing of ours is needed.

    embeddings             × α_in
    a branch's last layer  × α_res               (weight and bias)
    final LayerNorm        × α_out / α_in        where the output matrix is the token embedding, which has α_in by then
                           × α_out               where it is a matrix of its own
    queries                × √d · scale          where attention logits are not scaled by 1/√d

Nothing is lost: both compute the same function, up to rounding.
"""

from __future__ import annotations

from typing import Any

import torch

from mup_lightning.errors import UserError
from mup_lightning.model.gpt2 import GPT2

END_OF_TEXT = 50256
"""GPT-2's only special symbol."""

LAYERS = {
    "attention_norm": "ln_1",
    "attention.qkv": "attn.c_attn",
    "attention.out": "attn.c_proj",
    "mlp_norm": "ln_2",
    "mlp.up": "mlp.c_fc",
    "mlp.down": "mlp.c_proj",
}
"""Our names inside a block -> Hugging Face's. Its linear layers are Conv1D, which keep matrices transposed."""


def check(model: GPT2) -> None:
    """Refuse what GPT-2 has no place for.

    Raises:
        UserError: naming the switch.
    """
    config = model.config
    for key, trouble in (("layer_norm", not config.layer_norm), ("qk_norm", config.qk_norm)):
        if trouble:
            raise UserError(
                f"the model was trained with model.{key} {str(getattr(config, key)).lower()}, which Hugging Face's "
                f"GPT-2 cannot express; export it as it is: --format plain"
            )


def configuration(model: GPT2) -> dict[str, Any]:
    """The content of config.json."""
    config = model.config
    special = {"bos_token_id": END_OF_TEXT, "eos_token_id": END_OF_TEXT} if model.vocab_size > END_OF_TEXT else {}
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": model.vocab_size,
        "n_positions": config.context,
        "n_embd": config.width,
        "n_layer": config.depth,
        "n_head": config.width // config.head_dim,
        "n_inner": config.mlp_ratio * config.width,
        "activation_function": "gelu_new" if config.activation == "gelu" else "relu",
        "layer_norm_epsilon": 1e-5,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "tie_word_embeddings": config.tied,
        "bos_token_id": None,
        "eos_token_id": None,
    } | special


@torch.no_grad()
def weights(model: GPT2) -> dict[str, torch.Tensor]:
    """The content of model.safetensors: name -> float32 tensor.

    Raises:
        UserError: see `check`.
    """
    check(model)
    config, m, ours = model.config, model.multipliers, model.state_dict()
    out = m.output / m.input if config.tied else m.output
    width = config.width
    tensors = {
        "transformer.wte.weight": ours["token.weight"][: model.vocab_size] * m.input,
        "transformer.wpe.weight": ours["position.weight"] * m.input,
        "transformer.ln_f.weight": ours["final_norm.weight"] * out,
        "transformer.ln_f.bias": _bias(ours, "final_norm", width) * out,
    }
    if not config.tied:
        tensors["lm_head.weight"] = ours["head.weight"][: model.vocab_size]
    for layer in range(config.depth):
        for mine, theirs in LAYERS.items():
            name = f"blocks.{layer}.{mine}"
            weight = ours[f"{name}.weight"]
            bias = _bias(ours, name, weight.shape[0])
            if mine in ("attention.out", "mlp.down"):
                weight, bias = weight * m.residual, bias * m.residual
            if mine == "attention.qkv" and config.attention_scale == "1/d":
                factor = torch.ones(3 * width)
                factor[:width] = config.head_dim**-0.5
                weight, bias = weight * factor[:, None], bias * factor
            tensors[f"transformer.h.{layer}.{theirs}.weight"] = weight if "norm" in mine else weight.t()
            tensors[f"transformer.h.{layer}.{theirs}.bias"] = bias
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _bias(ours: dict[str, torch.Tensor], name: str, length: int) -> torch.Tensor:
    """A layer's bias; zeros where the model has none."""
    return ours.get(f"{name}.bias", torch.zeros(length))
