"""`mup-lightning export`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from mup_lightning.errors import UserError


def main(argv: list[str]) -> int:
    """Write a checkpoint's weights for use elsewhere."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog="mup-lightning export",
        description="Write the weights of a checkpoint, whatever strategy saved it, into a folder:\n"
        "  hf     a plain Hugging Face GPT-2, multipliers folded in: GPT2LMHeadModel.from_pretrained(FOLDER)\n"
        "  plain  our own parameters in one safetensors file, with the configuration and the multipliers beside it\n\n"
        "example:\n  mup-lightning export runs/nano-muon_kimi-mup --out exported",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "checkpoint", type=Path, help="a checkpoint's folder, or a run's folder (its newest checkpoint)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="is made; must not exist")
    parser.add_argument("--format", choices=("hf", "plain"), default="hf", help="default: hf")
    options = parser.parse_args(argv)
    out: Path = options.out
    if out.exists():
        raise UserError(f"--out is {out}, which exists already; name a new folder, or remove it")

    from mup_lightning.config.schema import Config
    from mup_lightning.training import checkpoint as checkpoints
    from mup_lightning.training import export as hugging_face
    from mup_lightning.training.evaluate import find, load_model
    from mup_lightning.training.tensor_files import write

    checkpoint = find(options.checkpoint)
    checkpoints.verify(checkpoint)
    config = Config.from_plain(checkpoint.config)
    model = load_model(checkpoint, config)
    if options.format == "hf":
        tensors, description = hugging_face.weights(model), hugging_face.configuration(model)
    else:
        tensors = {name: parameter.detach() for name, parameter in model.named_parameters()}
        multipliers = vars(model.multipliers)
        description = {"step": checkpoint.step, "multipliers": multipliers, "config": checkpoint.config}
    out.mkdir(parents=True)
    (out / "config.json").write_text(json.dumps(description, indent=1) + "\n")
    write(out / "model.safetensors", tensors, {"format": "pt"})
    numbers = sum(tensor.numel() for tensor in tensors.values())
    print(f"{checkpoint.path}: {len(tensors)} tensors, {numbers:,} numbers -> {out}")
    return 0
