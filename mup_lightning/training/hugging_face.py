"""A model as the architecture of transformers that computes the same: GPT-2, Llama, Qwen3 or Mixtral.

A plain Hugging Face model takes the multipliers folded into its weights:

    embeddings             × α_in
    a branch's last layer  × α_res               (weight and bias)
    output matrix          × α_out               where it is one of its own
    final norm             × α_out / α_in        where it is the token embedding, which has α_in by then
    queries, or their gain × √d · scale          where attention logits are not scaled by 1/√d

Nothing is lost: both compute the same function, up to rounding. The way back divides by the same factors.
"""

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from mup_lightning.config import imported
from mup_lightning.config.model import ModelConfig
from mup_lightning.data.tokenizer import Tokenizer
from mup_lightning.data.tokenizer_json import SAMPLE, tokenizer_json
from mup_lightning.errors import UserError
from mup_lightning.model.gpt2 import GPT2, build
from mup_lightning.spectral.base import RecipeConfig
from mup_lightning.spectral.recipe import derive
from mup_lightning.typed import as_typed

NEEDS = {"GPT-2": imported.BLOCKS["gpt2"]} | dict.fromkeys(("Llama", "Mixtral", "Qwen3"), imported.BLOCKS["llama"])
NEEDS["Qwen3"] = NEEDS["Qwen3"] | {"qk_norm": True, "bias": False}
"""Architecture -> the switches of our model that it is."""

ACTIVATIONS = {"gelu": "gelu_new", "relu": "relu", "silu": "silu"}

STACKED = {"attention.qkv": ["q", "k", "v"], "attention.kv": ["k", "v"], "mlp.gate_up": ["gate", "up"]}
"""Layer of a block -> what is stacked in it, of equal shapes; any other is one matrix or norm."""

GPT2_NAMES = {
    **{"token": "transformer.wte", "position": "transformer.wpe", "final_norm": "transformer.ln_f", "head": "lm_head"},
    **{"attention_norm": "ln_1", "mlp_norm": "ln_2", "out": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj"},
    **dict.fromkeys("qkv", "attn.c_attn"),  # one
}
LLAMA_NAMES = {
    **{"token": "model.embed_tokens", "final_norm": "model.norm", "head": "lm_head"},
    **{"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm", "out": "self_attn.o_proj"},
    **{name: f"self_attn.{name}_proj" for name in "qkv"} | {f"{name}_gain": f"self_attn.{name}_norm" for name in "qk"},
    **{name: f"mlp.{name}_proj" for name in ("gate", "up", "down")} | {"router": "block_sparse_moe.gate"},
}
"""Our matrices and norms -> Hugging Face's; those of a block without its beginning."""

EXPERT_NAMES = {"gate": "w1", "up": "w3", "down": "w2"}


def architecture(config: ModelConfig) -> str:
    """The name of the architecture that computes what such a model does; raises UserError, with the switch, if none."""
    name = config.family
    wrong = [key for key, value in NEEDS[name].items() if getattr(config, key) != value]
    if name == "GPT-2" and config.kv_dim < config.query_dim:
        wrong.append("heads_per_kv" if config.kv_heads is None else "kv_heads")
    for key in wrong:
        raise UserError(
            f"the model has model.{key} {as_typed(getattr(config, key))}, which Hugging Face's {name} cannot express; "
            f"export it as it is: --format plain"
        )
    return name


def descriptions(model: GPT2, tokenizer: Tokenizer) -> dict[str, str]:
    """The content of every file but the weights: name -> JSON.

    The end-of-text token stands between documents, and so both ends a text and begins one; it pads, too.

    Raises:
        UserError: none of the architectures has a switch, which is named, or transformers is not installed.
    """
    architecture(model.config)
    try:
        from transformers import GenerationConfig
    except ImportError:
        raise UserError(
            "exporting to Hugging Face needs transformers, which is not installed: pip install "
            "'mup-lightning[export]', or export the parameters as they are: --format plain"
        ) from None
    text, end = tokenizer_json(tokenizer)
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": model.config.context}
    about |= {"clean_up_tokenization_spaces": False, "bos_token": end, "eos_token": end, "pad_token": end}
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), tokenizer.eot)
    return {
        "config.json": description(model, special).to_json_string(),
        "generation_config.json": GenerationConfig(**special).to_json_string(),
        "tokenizer.json": text,
        "tokenizer_config.json": json.dumps(about, indent=1) + "\n",
    }


def description(model: GPT2, special: dict[str, int]) -> Any:
    """The model's shape and switches, and its special tokens, as a configuration of transformers."""
    from transformers import AutoConfig

    config, name = model.config, architecture(model.config)
    heads = {"heads": config.query_dim // config.head_dim, "kv_heads": config.kv_dim // config.head_dim}
    ours = vars(config) | heads | {"activation": ACTIVATIONS[config.activation]}
    kind = name.replace("-", "").lower()
    found: dict[str, Any] = special | {theirs: ours[key] for key, theirs in imported.KEYS[kind].items()}
    if name == "GPT-2":
        found |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), config.dropout)
        return AutoConfig.for_model(kind, architectures=["GPT2LMHeadModel"], n_inner=config.hidden, **found)
    found |= {"intermediate_size": config.hidden, "attention_dropout": config.dropout}
    found |= {"rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base}}
    if config.qk_norm or config.query_dim != config.width:
        found |= {"head_dim": config.head_dim}
    if config.experts:
        # Theirs is k times ours where there is one block; of several, they multiply the means over blocks.
        found |= {"router_aux_loss_coef": config.balance / config.experts_per_token}
    elif not config.qk_norm:
        found |= {"attention_bias": config.bias, "mlp_bias": config.bias}
    return AutoConfig.for_model(kind, architectures=[f"{name}ForCausalLM"], **found)


Piece = tuple[torch.Tensor, float]
"""A view of our weights, and the factor that it is under."""


def pieces(model: GPT2) -> dict[str, list[Piece]]:
    """Hugging Face's name of a tensor -> what is stacked in it, along its outputs, of ours.

    Matrices of GPT-2's blocks are transposed there, as `TRANSPOSED` says; biases that it always has are zeros here.
    """
    config, m, experts = model.config, model.multipliers, model.config.experts or 1
    gpt2, ours = architecture(config) == "GPT-2", dict[str, torch.Tensor](model.named_parameters())
    names, blocks = (GPT2_NAMES, "transformer.h") if gpt2 else (LLAMA_NAMES, "model.layers")
    scale = m.attention * (config.head_dim**-0.5 if config.attention_scale == "1/d" else 1)
    # A norm of the queries takes a factor out of them again, so that it goes to their gain.
    factors = {"q_gain" if config.qk_norm else "q": scale, "out": m.residual, "down": m.residual, "head": m.output}
    factors |= {"token": m.input, "position": m.input, "final_norm": m.output / m.input if config.tied else 1.0}
    if config.qk_norm and not config.qk_gain:
        gains = [f"blocks.{number}.attention.{name}_gain" for number in range(config.depth) for name in "qk"]
        ours |= {name: torch.ones(config.head_dim) for name in gains}
    found: dict[str, list[Piece]] = {}
    for name, tensor in ours.items():
        block, layer, kind = re.findall(r"^(?:blocks\.(\d+)\.)?(.+?)(?:\.(weight|bias))?$", name)[0]
        stacked = STACKED.get(layer, [layer.rpartition(".")[2]])
        routed = config.experts and layer in ("mlp.gate_up", "mlp.down")
        stacked = [(part, expert) for expert in range(experts if routed else 1) for part in stacked]
        rows = tensor[: model.vocab_size] if layer in ("token", "head") else tensor
        for (part, expert), view in zip(stacked, rows.chunk(len(stacked)), strict=True):
            path = f"block_sparse_moe.experts.{expert}.{EXPERT_NAMES[part]}" if routed else names[part]
            path = f"{blocks}.{block}.{path}" if block else path
            found.setdefault(f"{path}.{kind or 'weight'}", []).append((view, factors.get(part, 1.0)))
    for name in [name for name in found if gpt2 and not re.search("wte|wpe|lm_head|bias$", name)]:
        zeros: list[Piece] = [(torch.zeros(len(view)), 1.0) for view, _ in found[name]]
        found.setdefault(name.removesuffix("weight") + "bias", zeros)
    return found


TRANSPOSED = re.compile(r".*\.h\.\d+\.(attn|mlp)\.\w+\.weight")
"""GPT-2's linear layers are Conv1D, which keep matrices as (inputs, outputs)."""


@torch.no_grad()
def weights(model: GPT2) -> dict[str, torch.Tensor]:
    """The content of model.safetensors: name -> float32 tensor, with all multipliers folded in."""
    found = {name: torch.cat([view * factor for view, factor in parts]) for name, parts in pieces(model).items()}
    return {name: (tensor.t() if TRANSPOSED.match(name) else tensor).contiguous() for name, tensor in found.items()}


def read(folder: Path) -> tuple[GPT2, Tokenizer]:
    """The model of a Hugging Face folder, in evaluation mode on the CPU, and its tokenizer.

    Raises UserError where `load` does, or there is no tokenizer.json that can be read.
    """
    config = ModelConfig(**imported.settings(folder))
    tokenizer = Tokenizer.of_model(folder, imported.end_of_text(folder))
    model = build(config, derive(RecipeConfig(parametrization="sp"), config.width, config.depth), 0, device="meta")
    model.to_empty(device="cpu")
    load(model, folder)
    return model.eval(), tokenizer


@torch.no_grad()
def load(model: GPT2, folder: Path, tokenizer: Tokenizer | None = None) -> None:
    """Give the model the weights of a Hugging Face folder, so that it computes the same function.

    Args:
        model: of the folder's shape; its own multipliers are taken out of the weights. An output matrix that is tied
            there may be one of its own here, which begins as a copy.
        folder: with the weights as safetensors, in one file or several.
        tokenizer: what the model is to be given tokens of; None: that of the folder.

    Raises:
        UserError: the folder's config.json says another shape, its weights cannot be read, a tensor is missing or has
            another shape, or one has no place here; or its tokenizer.json makes other tokens of text.
    """
    imported.check(model.config)
    if tokenizer and (folder / "tokenizer.json").is_file() and find_spec("tokenizers"):
        other = Tokenizer.of_model(folder, imported.end_of_text(folder))
        if (found := other.encode(SAMPLE).tolist()) != (ids := tokenizer.encode(SAMPLE).tolist()):
            raise UserError(
                f"{folder} has a tokenizer that makes other tokens of text than {tokenizer.name}, the corpus's: "
                f"{found[:6]}, not {ids[:6]}; prepare the corpus with --tokenizer {folder}/tokenizer.json"
            )
    theirs: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            theirs |= load_file(file)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{file} cannot be read ({error}); expected weights as safetensors") from None
    if not theirs:
        raise UserError(f"{folder} has no .safetensors; expected weights as transformers' save_pretrained writes them")
    prefix = "transformer." if architecture(model.config) == "GPT-2" else "model."  # GPT-2's own files lack theirs
    theirs = {name if name.startswith((prefix, "lm_head.")) else prefix + name: own for name, own in theirs.items()}
    embeddings = "embed_tokens.weight" if prefix == "model." else "wte.weight"
    if not model.config.tied and prefix + embeddings in theirs:
        theirs.setdefault("lm_head.weight", theirs[prefix + embeddings])
    for name, parts in pieces(model).items():
        if name not in theirs:
            raise UserError(f"{folder} has no tensor {name}; expected the weights of {architecture(model.config)}")
        found = theirs.pop(name)
        found = found.t() if TRANSPOSED.match(name) else found
        if name.endswith("wpe.weight"):
            found = found[: model.config.context]
        wanted = (sum(len(view) for view, _ in parts), *parts[0][0].shape[1:])
        if found.shape != wanted:
            raise UserError(f"{name} in {folder} is {tuple(found.shape)}; its config.json makes it {wanted}")
        for (view, factor), own in zip(parts, found.split([len(view) for view, _ in parts]), strict=True):
            view.copy_(own.float() / factor)
    # A tied head repeats the embeddings, and masks and frequencies are computed.
    known = r"lm_head\.weight" if model.config.tied else r"(?!)"
    if unknown := [name for name in theirs if not re.search(rf"\.(masked_bias|attn\.bias|inv_freq)$|^{known}$", name)]:
        raise UserError(f"{folder} has tensors without a place in {architecture(model.config)}: {', '.join(unknown)}")
