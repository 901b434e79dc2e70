"""The shape of a Hugging Face GPT-2, Llama, Qwen3 or Mixtral, as settings that compute the same. Imports no torch."""

from pathlib import Path
from typing import Any

from mup_lightning.config.model import ModelConfig
from mup_lightning.errors import UserError, located
from mup_lightning.files import read_json
from mup_lightning.typed import as_typed

_ACTIVATIONS = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "relu": "relu", "silu": "silu", "swish": "silu"}

_MUST_BE: dict[str, dict[str, Any]] = {
    "gpt2": {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
    "llama": {"rope_scaling": None, "pretraining_tp": 1},
    "qwen3": {"rope_scaling": None, "use_sliding_window": False},
    "mixtral": {"rope_scaling": None, "sliding_window": None, "router_jitter_noise": 0.0},
}
"""What of theirs has one value here."""

_ROTARY = {
    **{"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "head_dim": None, "rope_theta": 10000.0},
    **{"tie_word_embeddings": False, "num_key_value_heads": None, "rope_parameters": None, "rms_norm_eps": 1e-6},
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "gpt2": {
        **{"vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024, "n_inner": None},
        **{"activation_function": "gelu_new", "tie_word_embeddings": True, "layer_norm_epsilon": 1e-5},
    },
    "llama": _ROTARY,
    "qwen3": _ROTARY | {"head_dim": 128, "num_key_value_heads": 32},
    "mixtral": _ROTARY
    | {"rope_theta": 1e6, "num_key_value_heads": 8, "rms_norm_eps": 1e-5}
    | {"num_local_experts": 8, "num_experts_per_tok": 2},
}
"""transformers' own defaults of what config.json may leave out."""

KEYS: dict[str, dict[str, str]] = {
    "gpt2": {
        **{"width": "n_embd", "depth": "n_layer", "heads": "n_head", "context": "n_positions"},
        **{"vocab_size": "vocab_size", "activation": "activation_function", "norm_eps": "layer_norm_epsilon"},
        **{"tied": "tie_word_embeddings"},
    },
    "llama": {
        **{"width": "hidden_size", "depth": "num_hidden_layers", "context": "max_position_embeddings"},
        **{"heads": "num_attention_heads", "kv_heads": "num_key_value_heads", "vocab_size": "vocab_size"},
        **{"activation": "hidden_act", "norm_eps": "rms_norm_eps", "tied": "tie_word_embeddings"},
    },
}
KEYS["qwen3"] = KEYS["llama"]
KEYS["mixtral"] = KEYS["llama"] | {"experts": "num_local_experts", "experts_per_token": "num_experts_per_tok"}
"""Key of the section `model` -> theirs, of what has the same meaning."""

_COMMON = {"layer_norm": True, "qk_norm": False, "parallel": False, "logit_cap": None}
BLOCKS: dict[str, dict[str, Any]] = {
    "gpt2": _COMMON | {"attention_ratio": 1, "position": "learned", "norm": "layernorm", "gated": False},
    "llama": _COMMON | {"position": "rope", "norm": "rmsnorm", "gated": True},
}
"""What their blocks are here; Qwen3's, but for qk_norm, and Mixtral's are Llama's."""


def settings(folder: Path) -> dict[str, Any]:
    """Key of the section `model` -> value, from a folder's config.json; its weights among them.

    Raises:
        UserError: there is none, it is of another architecture, or something in it has no counterpart here.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise UserError(f"{folder} has no config.json; expected the folder of a Hugging Face model")
    said = read_json(file, "a Hugging Face model's config.json")
    kind = said.get("model_type") if isinstance(said, dict) else None
    if kind not in _DEFAULTS:
        raise UserError(f"{file} has model_type {kind!r}; expected {', '.join(_DEFAULTS)}")
    theirs = _DEFAULTS[kind] | said
    with located(file):
        try:
            if rope := theirs.get("rope_parameters"):
                theirs |= {"rope_theta": rope.get("rope_theta", theirs["rope_theta"])}
                theirs |= {} if rope.get("rope_type", "default") == "default" else {"rope_scaling": rope}
            for key, value in _MUST_BE[kind].items():
                if theirs.get(key, value) != value:
                    raise UserError(f"{key} is {as_typed(theirs[key])}; models here have {as_typed(value)}")
            found: dict[str, Any] = {"weights": str(folder), "experts": None}
            found |= {ours: theirs[name] for ours, name in KEYS[kind].items()}
            if found["activation"] not in _ACTIVATIONS:
                expected = ", ".join(_ACTIVATIONS)
                raise UserError(f"the activation {found['activation']} is not among ours; expected {expected}")
            found["activation"] = _ACTIVATIONS[found["activation"]]
            found |= _gpt2(theirs) if kind == "gpt2" else _llama(theirs, kind)
            ModelConfig(**found)  # refuses what cannot be built
        except (AttributeError, KeyError, TypeError, ZeroDivisionError) as error:
            raise UserError(f"a key is missing or has another type: {error}; expected a {kind}'s") from None
    return found


def end_of_text(folder: Path) -> int | None:
    """The id of the token that ends texts, the first where there are several; None: the folder does not say."""
    for file in (folder / "generation_config.json", folder / "config.json"):
        if file.is_file() and (found := read_json(file, "a Hugging Face model's").get("eos_token_id")) is not None:
            return int(found[0] if isinstance(found, list) else found)
    return None


def check(model: ModelConfig) -> None:
    """Raise UserError for settings that contradict those of `model.weights`.

    The context may be shorter than theirs, and an output matrix of its own where theirs is tied.
    """
    for key, theirs in settings(Path(model.weights or "")).items():
        ours = getattr(model, key)
        if ours != theirs and not (key == "context" and ours < theirs) and not (key == "tied" and theirs):
            raise UserError(
                f"model.{key} is {as_typed(ours)}, but {as_typed(theirs)} in {model.weights}; leave it out, since "
                f"weights=FOLDER takes the shape over"
            )


def _gpt2(theirs: dict[str, Any]) -> dict[str, Any]:
    width = theirs["n_embd"]
    own = {"bias": True, "mlp_ratio": (theirs["n_inner"] or 4 * width) / width}
    return BLOCKS["gpt2"] | own | {"kv_heads": None, "heads_per_kv": 1, "qk_gain": False}


def _llama(theirs: dict[str, Any], kind: str) -> dict[str, Any]:
    width, heads = theirs["hidden_size"], theirs["num_attention_heads"]
    if theirs["attention_bias"] != theirs["mlp_bias"]:
        raise UserError("attention_bias and mlp_bias differ; here all linear layers have biases, or none")
    own = {"kv_heads": theirs["num_key_value_heads"] or heads, "mlp_ratio": theirs["intermediate_size"] / width}
    own |= {"attention_ratio": heads * (theirs["head_dim"] or width // heads) / width}
    own |= {"rope_base": theirs["rope_theta"], "bias": theirs["attention_bias"]}
    return BLOCKS["llama"] | own | dict.fromkeys(("qk_norm", "qk_gain"), kind == "qwen3")
