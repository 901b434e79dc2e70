"""`mup-lightning support`."""

from __future__ import annotations

import argparse
import json


def main(argv: list[str]) -> int:
    """Print what works with what."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog="mup-lightning support",
        description="Which optimizer runs under which strategy, in which precision, whether its checkpoints go on in\n"
        "another number of processes, and whether it can be compiled. Training refuses by the same code.\n\n"
        "example:\n  mup-lightning support --json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--json", action="store_true", help="print JSON: every combination")
    either.add_argument("--markdown", action="store_true", help="as a Markdown table")
    options = parser.parse_args(argv)

    from mup_lightning import tables
    from mup_lightning.training import support

    if options.json:
        print(json.dumps(support.as_plain(), indent=1))
    elif options.markdown:
        print(support.markdown())
    else:
        print(tables.text([list(support.COLUMNS), *support.rows()]))
        print("\n" + "\n".join(support.notes()))
    return 0
