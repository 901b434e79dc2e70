"""`mup-lightning report transfer`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

DESCRIPTION = """Does the best base value stay where it is while the model grows? For every group of a table: the
optimum of each size, how fast it moves with the size, what it costs to tune small, the noise, and a verdict."""

EXAMPLE = "mup-lightning report transfer runs/sweeps/lr_width/results.csv --out runs/sweeps/lr_width"


def add(parsers: Any) -> None:
    """Add this report to those of `mup-lightning report`."""
    parser = parsers.add_parser(
        "transfer",
        allow_abbrev=False,
        help="does the best value stay where it is while the model grows",
        description=f"{DESCRIPTION}\n\nexample:\n  {EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "results",
        type=Path,
        metavar="RESULTS",
        help="results.csv of a sweep; or a .csv with columns parametrization, axis, size, log2_value, seed, loss "
        "(empty: diverged); or the published losses (.json)",
    )
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--json", action="store_true", help="print JSON")
    either.add_argument("--markdown", action="store_true", help="print tables in Markdown")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write figures and transfer.json there")
    parser.add_argument("--noise", type=float, metavar="NATS", help="between seeds, where the table has one seed only")
    parser.add_argument(
        "--slope-tolerance", type=float, default=0.15, metavar="X", help="of a slope that counts as none (default 0.15)"
    )
    parser.add_argument(
        "--regret-tolerance", type=float, default=0.02, metavar="NATS", help="that counts as none (default 0.02)"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the report; draw it where a folder is named."""
    from mup_lightning.studies.transfer.report import run
    from mup_lightning.studies.transfer.settings import TransferSettings

    values = {key: value for key, value in vars(options).items() if key not in ("what", "run")}
    return run(TransferSettings(**values))
