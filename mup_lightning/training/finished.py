"""What is done with a finished checkpoint: its validation loss on a corpus, and its export."""

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
from mup_lightning.training import hugging_face
from mup_lightning.training.module import loss_sums
from mup_lightning.training.tensors import Shards, write


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
        form: hf, which transformers reads as a GPT-2 or a Llama, or plain: our own parameters as they are, with the
            run's configuration and the multipliers.

    Returns:
        One line that says what was written.

    Raises:
        UserError: the folder exists or cannot be written, the checkpoint is missing or damaged, neither GPT-2 nor
            Llama can express the model, or transformers is not installed.
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
        description, tensors = hugging_face.description(model).to_json_string(), hugging_face.weights(model)
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
