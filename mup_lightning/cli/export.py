"""`mup-lightning export`."""

from __future__ import annotations

import argparse
from pathlib import Path


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

    from mup_lightning.training.export import export

    print(export(options.checkpoint, options.out, options.format))
    return 0
