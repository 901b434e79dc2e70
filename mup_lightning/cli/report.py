"""`mup-lightning report`."""

from __future__ import annotations

import argparse
from pathlib import Path

from mup_lightning.cli import report_transfer


def main(argv: list[str]) -> int:
    """Print what a table of results says."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog="mup-lightning report",
        description="What a sweep's results say.\n\n"
        "example:\n  mup-lightning report best runs/sweeps/optimizers/results.csv\n"
        f"  {report_transfer.EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parsers = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    _add_best(parsers)
    report_transfer.add(parsers)
    options = parser.parse_args(argv)
    status: int = options.run(options)
    return status


def _add_best(parsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    what = "the best value of every group, with the losses beside it"
    parser = parsers.add_parser("best", help=what, description=what, allow_abbrev=False)
    parser.add_argument(
        "results", type=Path, metavar="RESULTS", help="results.csv of `mup-lightning sweep`, or its folder"
    )
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--markdown", action="store_true", help="as a Markdown table")
    either.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_best)


def _best(options: argparse.Namespace) -> int:
    from mup_lightning.studies.transfer.best import run
    from mup_lightning.studies.transfer.settings import BestSettings

    return run(BestSettings(options.results, options.json, options.markdown))
