"""`mup-lightning evaluate`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


def main(argv: list[str]) -> int:
    """Print the validation loss of a checkpoint."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog="mup-lightning evaluate",
        description="Validation loss of a checkpoint on a prepared corpus.\n\nexample:\n"
        "  mup-lightning evaluate runs/nano-muon_kimi-mup/checkpoints/step_00000300 --json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "checkpoint", type=Path, help="a checkpoint's folder, or a run's folder (its newest checkpoint)"
    )
    parser.add_argument("--data", help="folder of a prepared corpus (default: the one that the run was trained on)")
    parser.add_argument("--batch", type=int, default=8, help="windows in one forward pass (default: 8)")
    parser.add_argument("--val-tokens", type=int, help="only the first this many tokens (default: all)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(argv)

    from mup_lightning.training.hardware import tune_allocator

    tune_allocator()
    from mup_lightning.training.evaluate import evaluate

    result = evaluate(options.checkpoint, options.data, batch=options.batch, val_tokens=options.val_tokens)
    if options.json:
        print(json.dumps(result, indent=1))
    else:
        own = result["run_val_tokens"]
        if own not in (None, options.val_tokens) and options.data is None:
            print(
                f"note: the run itself was validated on the first {own:,} tokens (--val-tokens {own})", file=sys.stderr
            )
        print(
            f"{result['checkpoint']} on {result['data']}:\n"
            f"  validation loss  {result['validation_loss']:.4f} nats per token over {result['tokens']:,} tokens\n"
            f"  unigram model    {result['unigram_loss']:.4f} nats per token"
        )
    return 0
