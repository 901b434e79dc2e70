"""`python -m tests.benchmarks`: our speed and memory against a plain PyTorch loop."""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import asdict
from pathlib import Path

from mup_lightning.errors import UserError


def main(argv: list[str]) -> int:
    """Measure, and print tables or JSON."""
    from tests.benchmarks.cases import CASES, run_case
    from tests.benchmarks.machine import machine
    from tests.benchmarks.table import heading, table

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
    parser.add_argument("--rounds", type=int, metavar="N", help="turns of each contender (default: the case's own)")
    parser.add_argument("--steps", type=int, metavar="N", help="timed steps in a turn (default: the case's own)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: 2)")
    parser.add_argument(
        "--patience",
        type=float,
        metavar="MINUTES",
        help="for so long, wait for other programs to leave the processor, and repeat rounds that they disturbed "
        "(default: 0; time runs for each case anew)",
    )
    parser.add_argument("--quick", action="store_true", help="tiny models and few steps: does it work?")
    options = parser.parse_args(argv)
    for name in options.cases:
        if name not in CASES:
            parser.error(f"unknown case {name!r}; expected {', '.join(CASES)}")

    if options.json not in (None, "-") and not Path(options.json).absolute().parent.is_dir():
        parser.error(f"--json is {options.json}, but there is no folder {Path(options.json).parent}; make it first")
    if options.patience is not None and not 0 <= options.patience < math.inf:
        parser.error(f"--patience is {options.patience}; expected minutes, 0 or more")

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    where = machine()
    say(heading(where))
    if where["load"] > 0.3 * where["cores"]:
        say(f"note: other programs are busy here (load {where['load']}); ranges and controls show how much it matters")
    given = {key: getattr(options, key) for key in ("quick", "rounds", "steps", "threads", "patience")}
    results = []
    for name in options.cases or CASES:
        results.append(run_case(name, say, **given))
        if options.json != "-":
            print(f"\n{table(results[-1], aims=not options.quick)}\n", flush=True)
    text = json.dumps(
        {"quick": options.quick, "machine": where, "cases": [asdict(result) for result in results]}, indent=1
    )
    if options.json == "-":
        print(text)
    elif options.json:
        Path(options.json).write_text(text + "\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        sys.exit(f"error: {error}")
