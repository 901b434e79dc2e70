"""The transfer report in words and tables, and `mup-lightning report transfer`."""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from mup_lightning import tables
from mup_lightning.files import check_folder, make_folder, write_json
from mup_lightning.studies.transfer.best import BestSettings
from mup_lightning.studies.transfer.losses import read_losses
from mup_lightning.studies.transfer.verdict import (
    REGRET_TOLERANCE,
    SLOPE_TOLERANCE,
    Group,
    bounded_slope,
    families,
    transfer,
)
from mup_lightning.typed import NonNegativeFloat, PositiveFloat

LEGEND = (
    "optimum: log2 of the best base value ± its standard error; (edge): the last one tried, so it may lie beyond;\n"
    "(cliff): the next one is lost, so known to half a step. regret: loss with the smallest size's best value minus\n"
    "the best loss; (±): what the noise may make of it; ≥: the best value is the last one tried. Brackets: 95 %\n"
    "intervals. Losses: nats, mean over seeds, adjusted where values were run with different seeds."
)


@dataclass
class TransferSettings(BestSettings, prefix="--"):
    """Print, for each group, the optimum of each size, its slope over the sizes, the regret, the noise and a verdict.

    Attributes:
        results: results.csv of a sweep or its folder; or a .csv with the columns parametrization, axis, size,
            log2_value, seed, loss (empty: diverged); or the published losses (.json).
        json: print JSON.
        markdown: print tables in Markdown.
        out: folder for figures and transfer.json; null: none.
        noise: standard deviation between seeds, nats, for groups that have one seed; null: unknown.
        slope_tolerance: slope that still counts as transfer, powers of two per doubling.
        regret_tolerance: regret that still counts as transfer, nats.
    """

    out: Path | None = None
    noise: NonNegativeFloat | None = None
    slope_tolerance: PositiveFloat = SLOPE_TOLERANCE
    regret_tolerance: PositiveFloat = REGRET_TOLERANCE


def run(settings: TransferSettings) -> int:
    """Print the report, and draw it if a folder is given.

    Returns:
        0, whatever the verdicts are.

    Raises:
        UserError: the table cannot be read or compared, or the folder cannot be made.
    """
    if settings.out:
        check_folder(settings.out)
    found = transfer(read_losses(settings.results), settings.slope_tolerance, settings.regret_tolerance, settings.noise)
    if settings.noise is not None and any(one.seeds > 1 for one in found):
        print("note: --noise holds for groups of one seed; the others use their own seeds", file=sys.stderr)
    written = []
    if settings.out:
        from mup_lightning.studies.transfer.figures import draw

        make_folder(settings.out)
        write_json(settings.out / "transfer.json", to_dict(found))
        written = [settings.out / "transfer.json", *draw(found, settings.out)]
    if settings.json:
        print(json.dumps(to_dict(found), indent=1))
    elif settings.markdown:
        print(markdown(found))
    else:
        print("\n".join([text(found), *(f"wrote {file}" for file in written)]))
    return 0


def text(found: Sequence[Group]) -> str:
    """For the terminal: a table for every group, and the parametrizations side by side."""
    parts = []
    for family in families(found):
        parts.append(f"== {family[0].title} ==")
        parts += [f"{one.label}: {one.verdict}\n{_table(one)}" for one in family]
        if len(family) > 1:
            lines = [[family[0].axis, *(one.label for one in family)]]
            for size, losses in compared(family).items():
                lines.append([size, *("-" if loss is None else f"{loss:.3f}" for loss in losses)])
            parts.append(f"best loss at equal size\n{tables.text(lines)}")
    return "\n\n".join([*parts, LEGEND])


def _table(found: Group) -> str:
    """A column per size."""
    columns = [[found.axis, "optimum", "best tried", "loss", "regret"]]
    for curve, cost in zip(found.curves, found.regrets, strict=True):
        cells = ["-", "-", "diverged"]
        if best := found.at(curve.size):
            error = f" ± {math.hypot(best.se, best.shape_se):.2f}" if best.se else ""
            mark = " (edge)" if best.edge else " (cliff)" if best.cliff else ""
            ends = best.plateau if len(best.plateau) > 1 else (best.best_value,)
            tried = " to ".join(f"2^{value:g}" for value in dict.fromkeys((ends[0], ends[-1])))
            cells = [f"{best.value:.2f}{error}{mark}", tried, f"{best.loss:.3f}"]
        columns.append([curve.size, *cells, str(cost)])
    return tables.text(list(zip(*columns, strict=True)))


def compared(family: Sequence[Group]) -> dict[str, list[float | None]]:
    """Size, small to large -> best loss of each of the family; None where nothing trained."""
    sizes = sorted({(curve.position, curve.size) for one in family for curve in one.curves})
    return {size: [best.loss if (best := one.at(size)) else None for one in family] for _, size in sizes}


def markdown(found: Sequence[Group]) -> str:
    """For a Markdown page: a table for each axis, swept value and list of sizes, with a line per group."""
    parts = []
    kinds = groupby(found, lambda one: (one.axis, one.settings.get("value", "value"), [c.size for c in one.curves]))
    for (axis, value, sizes), same in kinds:
        head = [f"{value} over {axis}", *sizes, "slope", "regret", "noise (seed by seed)", "verdict"]
        parts.append(tables.markdown([head, *map(_line, same)]))
    return "\n\n".join(parts)


def _line(found: Group) -> list[str]:
    """A row of the table; an optimum at the edge is marked as a bound."""
    name = f"{found.title.partition(', ')[2]}, **{found.label}**".removeprefix(", ")
    noise = "-" if found.noise.residual is None else str(found.noise).replace(" seed by seed", "")
    best = [found.at(curve.size) for curve in found.curves]
    optima = [f"{('', '≥ ', '≤ ')[o.edge]}{o.value:.2f}" if o else "diverged" for o in best]
    verdict = found.verdict.partition(":")[0]
    return [name, *optima, bounded_slope(found.slope), str(found.regrets[-1]), noise, verdict]


def to_dict(found: Sequence[Group]) -> dict[str, Any]:
    """The groups as plain values for JSON; None where there is no value. docs/method/transfer.md lists the keys."""
    comparisons = []
    for family in families(found):
        if len(family) > 1:
            labels = [one.label for one in family]
            losses = {size: dict(zip(labels, own, strict=True)) for size, own in compared(family).items()}
            comparisons.append(dict(family[0].family) | {"best_loss": losses})
    return {"groups": [_group(one) for one in found], "comparisons": comparisons}


def _group(found: Group) -> dict[str, Any]:
    slope, optima, largest = found.slope, found.optima, found.regrets[-1]
    best = {curve.size: found.at(curve.size) for curve in found.curves}
    regrets = dict(zip(best, found.regrets, strict=True))
    return found.settings | {
        "axis": found.axis,
        "label": found.label,
        "sizes": list(best),
        "seeds": found.seeds,
        "steps": found.steps,
        "optimum": {size: o and o.value for size, o in best.items()},
        "optimum_ci": {
            o.size: [o.value - o.ci_half_width, o.value + o.ci_half_width] if o.ci_half_width else None for o in optima
        },
        "best_value": {size: o and o.best_value for size, o in best.items()},
        "best_loss": {size: o and o.loss for size, o in best.items()},
        "slope": slope.slope if slope else None,
        "slope_ci": [slope.low, slope.high] if slope and slope.low is not None else None,
        "slope_bound": slope.bound if slope else "",
        "regret": largest.nats,
        "regret_infinite": largest.why == "diverged",
        "regret_at_least": largest.at_least,
        "regret_margin": largest.ci_half_width,
        "regrets": {size: cost.nats for size, cost in regrets.items()},
        "no_regret_because": {size: cost.why for size, cost in regrets.items() if cost.why},
        "edge": [o.size for o in optima if o.edge],
        "cliff": [o.size for o in optima if o.cliff],
        "plateau": {o.size: list(o.plateau) for o in optima if len(o.plateau) > 1},
        "diverged": {curve.size: curve.lost for curve in found.curves if curve.lost},
        "noise": found.noise.between_seeds,
        "noise_paired": found.noise.residual,
        "verdict": found.verdict,
    }
