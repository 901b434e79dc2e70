"""`mup-lightning report transfer`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from mup_lightning.files import check_folder, make_folder

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
    from mup_lightning.studies.transfer.report import markdown, screen
    from mup_lightning.studies.transfer.transfer import as_plain, transfer
    from mup_lightning.studies.transfer.verdict import Tolerance

    tolerance = Tolerance(options.slope_tolerance, options.regret_tolerance)
    if options.out:
        check_folder(options.out)
    findings = transfer(options.results, tolerance, options.noise)
    if options.noise is not None and any(finding.group.seeds > 1 for finding in findings):
        print("note: --noise holds for groups of one seed; the others have their seeds' own", file=sys.stderr)
    written = _write(findings, options.out) if options.out else []
    if options.json:
        print(json.dumps(as_plain(findings), indent=1))
    elif options.markdown:
        print(markdown(findings))
    else:
        print("\n".join([screen(findings), *(f"wrote {file}" for file in written)]))
    return 0


def _write(findings: list[Any], folder: Path) -> list[Path]:
    from mup_lightning.studies.transfer.transfer import as_plain
    from mup_lightning.studies.transfer.transfer_figures import draw

    make_folder(folder)
    file = folder / "transfer.json"
    file.write_text(json.dumps(as_plain(findings), indent=1) + "\n")
    return [file, *draw(findings, folder)]
