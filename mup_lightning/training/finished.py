"""What is done with a finished checkpoint: its validation loss on a corpus, and its export.

A plain Hugging Face GPT-2 takes the multipliers folded into its weights:

    embeddings             × α_in
    a branch's last layer  × α_res               (weight and bias)
    final LayerNorm        × α_out / α_in        where the output matrix is the token embedding, which has α_in by then
                           × α_out               where it is a matrix of its own
    queries                × √d · scale          where attention logits are not scaled by 1/√d

Nothing is lost: both compute the same function, up to rounding.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm import tqdm

from mup_lightning.config.schema import Config
from mup_lightning.data.sampler import validation_batches
from mup_lightning.data.shards import TokenStore, check_vocabulary
from mup_lightning.errors import UserError
from mup_lightning.files import check_folder, file_sha256, write_atomic, write_sums
from mup_lightning.model.gpt2 import GPT2, build
from mup_lightning.training import checkpoint as checkpoints
from mup_lightning.training.module import loss_sums
from mup_lightning.training.tensors import Shards, write

END_OF_TEXT = 50256
"""GPT-2's only special token."""

LAYERS = {
    "attention_norm": "ln_1",
    "attention.qkv": "attn.c_attn",
    "attention.out": "attn.c_proj",
    "mlp_norm": "ln_2",
    "mlp.up": "mlp.c_fc",
    "mlp.down": "mlp.c_proj",
}
"""Our names inside a block -> Hugging Face's. Its linear layers are Conv1D, which keep matrices transposed."""


def evaluate(path: Path, data: str | None = None, *, batch: int = 8, val_tokens: int | None = None) -> dict[str, Any]:
    """Validation loss of a checkpoint.

    Args:
        path: a checkpoint's folder, or a run's folder, whose newest checkpoint is meant.
        data: folder of a prepared corpus; None: the one that the run was trained on.
        batch: windows in one forward pass.
        val_tokens: only the first this many validation tokens; None: all.

    Returns:
        "checkpoint", "step", "data", "validation_loss" and "unigram_loss" (nats per token), "tokens" (predicted), and
        "run_val_tokens": how many validation tokens the run itself was measured on; None: all.

    Raises:
        UserError: the checkpoint is damaged, or the corpus has another vocabulary or is too short.
    """
    checkpoint = checkpoints.find(path)
    checkpoints.verify(checkpoint)
    config = Config.from_plain(checkpoint.config)
    folder = data or config.data.path
    store = TokenStore.open(folder, "val", verify=config.data.verify)
    check_vocabulary(store.manifest, config.data.tokenizer)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_model(checkpoint, config).to(device)
    batches = validation_batches(store, config.model.context, batch, val_tokens=val_tokens)
    total, tokens = loss_sums(model, tqdm(list(batches), desc="evaluating", disable=None), device).tolist()
    return {
        "checkpoint": str(checkpoint.path),
        "step": checkpoint.step,
        "data": str(folder),
        "validation_loss": total / tokens,
        "unigram_loss": store.manifest.unigram_loss,
        "tokens": int(tokens),
        "run_val_tokens": config.data.val_tokens,
    }


def load_model(checkpoint: checkpoints.Checkpoint, config: Config) -> GPT2:
    """The model of a checkpoint, in evaluation mode on the CPU, with the multipliers of its training."""
    recipe = config.derive()
    model = build(config.model, recipe, config.seed, device="meta")
    model.to_empty(device="cpu")
    Shards(checkpoint.path).load_weights(model)
    return model.eval()


def export(path: Path, out: Path, form: Literal["hf", "plain"] = "hf") -> str:
    """Write the weights of a checkpoint, whatever strategy saved it, into a new folder.

    Args:
        path: a checkpoint's folder, or a run's folder, whose newest checkpoint is meant.
        out: the new folder: config.json, model.safetensors, and their SHA256SUMS. It is there when it is whole.
        form: hf, which `GPT2LMHeadModel.from_pretrained` reads, or plain: our own parameters as they are, with the
            run's configuration and the multipliers.

    Returns:
        One line that says what was written.

    Raises:
        UserError: the folder exists or cannot be written, the checkpoint is missing or damaged, GPT-2 cannot express
            the model, or transformers is not installed.
    """
    if os.path.lexists(out):
        raise UserError(f"--out is {out}, which exists already; name a new folder, or remove it")
    check_folder(out)
    checkpoint = checkpoints.find(path)
    checkpoints.verify(checkpoint)
    model = load_model(checkpoint, Config.from_plain(checkpoint.config))
    # Under another name until it is whole: a killed export leaves nothing that would be taken for a model.
    unfinished = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    if form == "hf":
        description, tensors = hugging_face_config(model).to_json_string(), hugging_face_weights(model)
    else:
        tensors = {name: parameter.detach() for name, parameter in model.named_parameters()}
        plain = {"step": checkpoint.step, "multipliers": vars(model.multipliers), "config": checkpoint.config}
        description = json.dumps(plain, indent=1, ensure_ascii=False) + "\n"
    try:
        write_atomic(unfinished / "config.json", description)
        digest = write(unfinished / "model.safetensors", tensors, {"format": "pt"})["sha256"]
        write_sums(unfinished, {"config.json": file_sha256(unfinished / "config.json"), "model.safetensors": digest})
        unfinished.rename(out)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise UserError(f"{out} could not be written: {error.strerror}; name a folder elsewhere (--out)") from None
    elements = sum(tensor.numel() for tensor in tensors.values())
    return f"{checkpoint.path}: {len(tensors)} tensors, {elements:,} elements -> {out}"


def hugging_face_config(model: GPT2) -> Any:
    """The model's shape and switches as a transformers.GPT2Config.

    Raises:
        UserError: GPT-2 cannot express a switch, which is named, or transformers is not installed.
    """
    config = model.config
    for key, inexpressible in (("layer_norm", not config.layer_norm), ("qk_norm", config.qk_norm)):
        if inexpressible:
            raise UserError(
                f"the model was trained with model.{key} {str(getattr(config, key)).lower()}, which Hugging Face's "
                f"GPT-2 cannot express; export it as it is: --format plain"
            )
    try:
        from transformers import GPT2Config
    except ImportError:
        raise UserError(
            "exporting to Hugging Face needs transformers, which is not installed: pip install "
            "'mup-lightning[export]', or export the parameters as they are: --format plain"
        ) from None
    special = END_OF_TEXT if model.vocab_size > END_OF_TEXT else None
    return GPT2Config(
        architectures=["GPT2LMHeadModel"],
        vocab_size=model.vocab_size,
        n_positions=config.context,
        n_embd=config.width,
        n_layer=config.depth,
        n_head=config.width // config.head_dim,
        n_inner=config.mlp_ratio * config.width,
        activation_function="gelu_new" if config.activation == "gelu" else "relu",
        resid_pdrop=config.dropout,
        embd_pdrop=config.dropout,
        attn_pdrop=config.dropout,
        tie_word_embeddings=config.tied,
        bos_token_id=special,
        eos_token_id=special,
    )


@torch.no_grad()
def hugging_face_weights(model: GPT2) -> dict[str, torch.Tensor]:
    """The content of model.safetensors: name -> float32 tensor, with all multipliers folded in."""
    config, m, ours = model.config, model.multipliers, model.state_dict()
    out = m.output / m.input if config.tied else m.output

    def layer(name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """A layer's weight and bias; zeros where the model has no bias."""
        weight = ours[f"{name}.weight"]
        return weight, ours.get(f"{name}.bias", torch.zeros(len(weight)))

    gain, shift = layer("final_norm")
    tensors = {
        "transformer.wte.weight": ours["token.weight"][: model.vocab_size] * m.input,
        "transformer.wpe.weight": ours["position.weight"] * m.input,
        "transformer.ln_f.weight": gain * out,
        "transformer.ln_f.bias": shift * out,
    }
    if not config.tied:
        tensors["lm_head.weight"] = ours["head.weight"][: model.vocab_size]
    for number in range(config.depth):
        for mine, theirs in LAYERS.items():
            weight, bias = layer(f"blocks.{number}.{mine}")
            if mine in ("attention.out", "mlp.down"):
                weight, bias = weight * m.residual, bias * m.residual
            if mine == "attention.qkv":
                factor = torch.ones(3 * config.width)
                factor[: config.width] = m.attention * (config.head_dim**-0.5 if config.attention_scale == "1/d" else 1)
                weight, bias = weight * factor[:, None], bias * factor
            tensors[f"transformer.h.{number}.{theirs}.weight"] = weight if "norm" in mine else weight.t()
            tensors[f"transformer.h.{number}.{theirs}.bias"] = bias
    return {name: tensor.contiguous() for name, tensor in tensors.items()}
