"""`python -m tests.benchmarks`: our speed and memory against others' code."""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from mup_lightning.errors import UserError
from mup_lightning.files import check_folder, write_json
from tests.benchmarks.depth import DEPTH
from tests.benchmarks.harness import Case, machine, run_case, table
from tests.benchmarks.optimizers import OPTIMIZERS
from tests.benchmarks.strategies import STRATEGY_CASE
from tests.benchmarks.trainer import FEATURE_NORMS, SPECTRAL_NORMS, TRAINER

CASES: dict[str, Case] = {
    "trainer": TRAINER,
    "depth": DEPTH,
    "feature_norms": FEATURE_NORMS,
    "spectral_norms": SPECTRAL_NORMS,
    "optimizers": OPTIMIZERS,
    "strategies": STRATEGY_CASE,
}
"""In the order in which they run."""


def main(argv: list[str]) -> int:
    """Measure, and print tables or JSON."""
    described = "\n".join(f"  {name:<14} {case.description}" for name, case in CASES.items())
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog="python -m tests.benchmarks",
        description="Measure our speed and memory on this machine's CPU, in interleaved rounds.\n\n"
        f"cases:\n{described}\n\nexample:\n  python -m tests.benchmarks trainer --json bench.json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help="what to measure (default: all)")
    parser.add_argument("--json", metavar="FILE", help="write the result as JSON; - prints it instead of the tables")
    for name, what in (
        ("rounds", "turns of each contender"),
        ("steps", "timed steps in a turn"),
        ("threads", "CPU threads of torch"),
    ):
        parser.add_argument(f"--{name}", type=int, metavar="N", help=f"{what} (default: the case's own)")
    parser.add_argument(
        "--patience",
        type=float,
        default=0.0,
        metavar="MINUTES",
        help="how long rounds that other programs disturbed are repeated, for each case (default: 0)",
    )
    parser.add_argument("--quick", action="store_true", help="tiny models and few steps: does it work?")
    options = parser.parse_args(argv)
    given = {key: value for key in ("rounds", "steps", "threads") if (value := getattr(options, key)) is not None}
    if unknown := [name for name in options.cases if name not in CASES]:
        parser.error(f"unknown case {unknown[0]!r}; expected {', '.join(CASES)}")
    if any(value < 1 for value in given.values()) or not options.patience >= 0:
        parser.error("expected at least 1 of --rounds, --steps and --threads, and no negative --patience")
    if options.json not in (None, "-"):
        check_folder(Path(options.json).parent, "--json")

    where = machine()
    print(f"{where['processor']}, {where['cores']} cores; versions {where['versions']}", file=sys.stderr)
    results = {}
    for name in options.cases or CASES:
        case = CASES[name]
        settings = replace(case.quick if options.quick else case.default, **given)

        def say(text: str, name: str = name) -> None:
            print(f"{name}, {text}", file=sys.stderr, flush=True)

        results[name] = run_case(case, settings, say, 60 * options.patience)
        if options.json != "-":
            print(f"\n{table(name, results[name], aims=not options.quick)}\n", flush=True)
    whole = {"quick": options.quick, "machine": where, "cases": results}
    if options.json == "-":
        print(json.dumps(whole, indent=1))
    elif options.json:
        write_json(Path(options.json), whole)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        sys.exit(f"error: {error}")
