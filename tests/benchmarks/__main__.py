"""`python -m tests.benchmarks`: our speed and memory against others' code."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from mup_lightning.errors import UserError
from mup_lightning.files import check_folder, write_json
from tests.benchmarks import optimizers, strategies
from tests.benchmarks.generation import GENERATION
from tests.benchmarks.harness import QUICK, Case, machine, run_case, table
from tests.benchmarks.plan import PLAN
from tests.benchmarks.trainer import FEATURE_NORMS, OVERHEAD, SPECTRAL_NORMS, TRAINER

CASES: dict[str, Case] = {
    "trainer": TRAINER,
    "overhead": OVERHEAD,
    "feature_norms": FEATURE_NORMS,
    "spectral_norms": SPECTRAL_NORMS,
    "optimizers": optimizers.TIMES,
    "optimizer_memory": optimizers.MEMORY,
    "strategies": strategies.TIMES,
    "strategy_memory": strategies.MEMORY,
    "generation": GENERATION,
    "plan": PLAN,
}
"""In the order in which they run."""


def main(argv: list[str]) -> int:
    """Measure, and print tables or JSON."""
    described = "\n".join(f"  {name:<16} {case.description}" for name, case in CASES.items())
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog="python -m tests.benchmarks",
        description="Measure our speed and memory on this machine's CPU (Linux), in interleaved rounds.\n\n"
        f"cases:\n{described}\n\nexample:\n  python -m tests.benchmarks trainer --json bench.json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help="what to measure (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result as JSON, too")
    whats = {"rounds": "turns of each contender", "steps": "timed steps in a turn", "threads": "CPU threads of torch"}
    for name, what in whats.items():
        parser.add_argument(f"--{name}", type=int, metavar="N", help=f"{what} (default: the case's own)")
    parser.add_argument("--quick", action="store_true", help="tiny models and few steps: does it work?")
    options = parser.parse_args(argv)
    given = {key: value for key in whats if (value := getattr(options, key)) is not None}
    if unknown := [name for name in options.cases if name not in CASES]:
        parser.error(f"unknown case {unknown[0]!r}; expected {', '.join(CASES)}")
    if any(value < 1 for value in given.values()):
        parser.error("expected at least 1 of --rounds, --steps and --threads")
    if options.json:
        check_folder(options.json.parent, "--json")

    where = machine()
    print(f"{where['processor']}, {where['cores']} cores; versions {where['versions']}", file=sys.stderr)
    results = {}
    for name in options.cases or CASES:
        settings = replace(QUICK if options.quick else CASES[name].default, **given)
        print(f"{name}:", file=sys.stderr)
        results[name] = run_case(CASES[name], settings)
        print(f"\n{table(name, results[name], aims=not options.quick)}\n", flush=True)
    if options.json:
        write_json(options.json, {"quick": options.quick, "machine": where, "cases": results})
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        sys.exit(f"error: {error}")
