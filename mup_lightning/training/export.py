"""A finished checkpoint as a folder for use elsewhere, and whether it is the same there."""

import json
import os
import shutil
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, Literal

import torch

from mup_lightning.config.schema import Config
from mup_lightning.data.tokenizer import Tokenizer
from mup_lightning.data.tokenizer_json import SAMPLE
from mup_lightning.errors import UserError
from mup_lightning.files import check_folder, file_sha256, write_atomic, write_sums
from mup_lightning.model.gpt2 import GPT2
from mup_lightning.training import ExportSettings, hugging_face
from mup_lightning.training import checkpoint as checkpoints
from mup_lightning.training.finished import load_model, tokenizer_of
from mup_lightning.training.generate import generate
from mup_lightning.training.tensors import write

CLOSE = 1e-5
"""How far logits may lie apart, of the largest; rounding in float32 makes a tenth of it."""


def run(settings: ExportSettings) -> None:
    """Write a checkpoint's weights for use elsewhere."""
    print(export(settings.checkpoint, settings.out, settings.format, verify=settings.verify))


def export(path: Path, out: Path, form: Literal["hf", "plain"] = "hf", *, verify: bool = False) -> str:
    """Write the weights of a checkpoint, whatever strategy saved it, into a new folder.

    Args:
        path: a checkpoint's folder, or a run's folder, whose newest checkpoint is meant.
        out: the new folder: model.safetensors, what describes it, and SHA256SUMS. It is there when it is whole.
        form: hf, which transformers reads, with tokenizer, or plain: our own parameters as they are, with the run's
            configuration and the multipliers.
        verify: before the folder gets its name, compare what transformers makes of it with the model.

    Returns:
        One line that says what was written.

    Raises:
        UserError: the folder exists or cannot be written, the checkpoint is missing or damaged, none of theirs
            can express the model, transformers is not installed, or what it makes of the folder differs.
    """
    if os.path.lexists(out):
        raise UserError(f"--out is {out}, which exists already; name a new folder, or remove it")
    if verify and form == "plain":
        raise UserError("--verify compares with transformers, which cannot read --format plain; leave one out")
    check_folder(out)
    checkpoint = checkpoints.find(path)
    checkpoints.verify(checkpoint)
    config = Config.from_plain(checkpoint.config)
    model, tokenizer = load_model(checkpoint, config), tokenizer_of(checkpoint, config)
    # Under another name until it is whole: a killed export leaves nothing that would be taken for a model.
    unfinished = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    if form == "hf":
        texts, tensors = hugging_face.descriptions(model, tokenizer), hugging_face.weights(model)
    else:
        tensors = {name: parameter.detach() for name, parameter in model.named_parameters()}
        plain = {"step": checkpoint.step, "multipliers": vars(model.multipliers), "config": checkpoint.config}
        texts = {"config.json": json.dumps(plain, indent=1, ensure_ascii=False) + "\n"}
    try:
        for name, text in texts.items():
            write_atomic(unfinished / name, text)
        sums = {name: file_sha256(unfinished / name) for name in texts}
        sums["model.safetensors"] = write(unfinished / "model.safetensors", tensors, {"format": "pt"})["sha256"]
        write_sums(unfinished, sums)
        same = f"; {compare(model, tokenizer, unfinished)}" if verify else ""
        unfinished.rename(out)
    except UserError:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise UserError(f"{out} could not be written: {error.strerror}; name a folder elsewhere (--out)") from None
    elements = sum(tensor.numel() for tensor in tensors.values())
    return f"{checkpoint.path}: {len(tensors)} tensors, {elements:,} elements -> {out}{same}"


@torch.inference_mode()
def compare(model: GPT2, tokenizer: Tokenizer, folder: Path) -> str:
    """Load an exported folder with transformers, offline, and compare it with the model that it was made of.

    Returns:
        What was compared, in words.

    Raises:
        UserError: tokens, logits (by more than `CLOSE`) or greedily generated text differ; says where and by how much.
    """
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    theirs: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()
    fast: Any = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    wrong = "--verify: transformers makes something else of it, so nothing was written:"
    ids, eot = tokenizer.encode_batch([SAMPLE])[0].tolist(), tokenizer.eot
    found = fast(SAMPLE, add_special_tokens=False)["input_ids"]
    if found != ids or fast.decode(ids) != tokenizer.decode(ids):
        raise UserError(f"{wrong} {SAMPLE!r} has the tokens {ids}, but {found} there")
    if ends := {theirs.generation_config.eos_token_id, fast.eos_token_id} - {eot}:
        raise UserError(f"{wrong} a text ends with token {eot}, but with {ends} there")

    length = min(model.config.context, 256)
    tokens = torch.randint(model.vocab_size, (1, length), generator=torch.Generator().manual_seed(0))
    tokens[tokens == eot] = (eot + 1) % model.vocab_size  # one document: others may be masked here, and never are there
    ours = model(tokens)
    apart, largest = (ours - theirs(tokens).logits).abs().max().item(), max(1.0, ours.abs().max().item())
    if not apart <= CLOSE * largest:
        raise UserError(
            f"{wrong} logits up to {largest:.3g} are {apart:.2g} apart; expected at most {CLOSE * largest:.2g}"
        )

    prompt = tokens[:, : -(-length // 4)]
    more = max(1, length - prompt.shape[1])
    mine = list(islice(generate(model, prompt[0].tolist(), eot=eot), more))
    whole = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=more, do_sample=False)
    hers = [token for token in whole[0, prompt.shape[1] :].tolist() if token != eot]
    if mine != hers:
        first = next(number for number, (a, b) in enumerate(zip_longest(mine, hers), 1) if a != b)
        raise UserError(f"{wrong} greedily generated text differs from the token {first} on")
    close = f"logits of {length} tokens at most {apart:.1g} apart"
    return f"the same in transformers: {close}, {len(mine)} greedily generated tokens equal"
