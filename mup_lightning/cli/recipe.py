"""`mup-lightning recipe`."""

from __future__ import annotations

import argparse
import json

from mup_lightning.errors import UserError
from mup_lightning.spectral import comparison, tables
from mup_lightning.spectral.families import FAMILIES
from mup_lightning.spectral.published import PUBLISHED
from mup_lightning.spectral.recipe import variant_of


def main(argv: list[str]) -> int:
    """Print the recipe's tables, or how it differs from what is used elsewhere."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog="mup-lightning recipe",
        description="How every hyper-parameter scales with width and depth, derived from the spectral condition.\n\n"
        "examples:\n  mup-lightning recipe --optimizer adamw\n  mup-lightning recipe --diff completep",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--optimizer", choices=FAMILIES, help="one optimizer's table (default: all, compact)")
    parser.add_argument(
        "--branch-depth", type=int, default=2, metavar="K", help="k, matrices in a residual branch: 1, or 2 and more"
    )
    parser.add_argument(
        "--variant",
        choices=("published", "measured"),
        default="published",
        help="measured: with the update that `mup-lightning probe` found, where it found another (default: published)",
    )
    parser.add_argument(
        "--diff",
        choices=PUBLISHED,
        help="compare with a published parametrization, cell by cell (--optimizer: adamw unless given)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON; exponents are strings such as -1/2")
    options = parser.parse_args(argv)
    k = options.branch_depth
    if k < 1:
        raise UserError(f"--branch-depth is {k}; expected the number of matrices in a residual branch, at least 1")

    if options.variant == "measured":
        if options.diff:
            raise UserError("--diff compares the published rules; leave --variant measured out")
        if options.optimizer and FAMILIES[options.optimizer].measured is None:
            differing = ", ".join(family.name for family in FAMILIES.values() if family.measured)
            raise UserError(
                f"--variant is measured, but {options.optimizer} was measured as it is published "
                f"(docs/results/probe.md); "
                f"leave --variant out, or choose --optimizer {differing}"
            )
    families = {name: variant_of(family, options.variant) for name, family in FAMILIES.items()}
    if options.diff:
        arguments = (options.diff, options.optimizer or "adamw", k)
        print(json.dumps(comparison.as_plain(*arguments), indent=1) if options.json else comparison.as_text(*arguments))
    elif options.json:
        chosen = [families[options.optimizer]] if options.optimizer else list(families.values())
        values = [tables.as_plain(family, k) for family in chosen]
        print(json.dumps(values[0] if options.optimizer else values, indent=1))
    else:
        print(tables.as_text(families[options.optimizer], k) if options.optimizer else tables.all_as_text(k, families))
    return 0
