"""The transfer report in words and tables, and `mup-lightning report transfer`."""

import json
import math
import sys
from collections.abc import Sequence
from itertools import groupby

from mup_lightning import tables
from mup_lightning.files import check_folder, make_folder, write_json
from mup_lightning.studies.transfer.drift import Regret
from mup_lightning.studies.transfer.estimate import Optimum
from mup_lightning.studies.transfer.losses import read_losses
from mup_lightning.studies.transfer.settings import TransferSettings
from mup_lightning.studies.transfer.transfer import Transfer, compared, families, to_dict, transfer
from mup_lightning.studies.transfer.verdict import bounded_slope

LEGEND = (
    "optimum: log2 of the best base value ± its standard error; (edge): the last one tried, so it may lie beyond;\n"
    "(cliff): the next one is lost, so known to half a step. regret: loss with the smallest size's best value minus\n"
    "the best loss; (±): what the noise may make of it; ≥: the best value is the last one tried. Brackets: 95 %\n"
    "intervals. Losses: nats, mean over seeds, adjusted where values were run with different seeds."
)


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


def text(found: Sequence[Transfer]) -> str:
    """For the terminal: a table for every group, and the parametrizations side by side."""
    parts = []
    for family in families(found):
        parts.append(f"== {family[0].title} ==")
        parts += [f"{one.label}: {one.verdict}\n{_table(one)}" for one in family]
        if len(family) > 1:
            parts.append(f"best loss at equal size\n{tables.text(_losses(family))}")
    return "\n\n".join([*parts, LEGEND])


def _table(found: Transfer) -> str:
    """A column per size."""
    columns = [[found.axis, "optimum", "best tried", "loss", "regret"]]
    for regret in found.regrets:
        best = found.at(regret.size)
        cells = [_optimum(best), _plateau(best), f"{best.loss:.3f}"] if best else ["-", "-", "diverged"]
        columns.append([regret.size, *cells, _regret(regret)])
    return tables.text(list(zip(*columns, strict=True)))


def _optimum(best: Optimum) -> str:
    error = f" ± {math.hypot(best.se, best.shape_se):.2f}" if best.se else ""
    return f"{best.value:.2f}{error}" + (" (edge)" if best.edge else " (cliff)" if best.cliff else "")


def _plateau(best: Optimum) -> str:
    """The best value that was tried, or all that tie with it."""
    if len(best.plateau) == 1:
        return f"2^{best.best_value:g}"
    return f"2^{best.plateau[0]:g} to 2^{best.plateau[-1]:g}"


def _regret(regret: Regret) -> str:
    if regret.nats is None:
        return {"missing": "not tried", "untuned": "-"}.get(regret.why, regret.why)
    half = f" (±{regret.ci_half_width:.3f})" if regret.ci_half_width else ""
    return f"{'≥ ' if regret.at_least else ''}{regret.nats:.3f}{half}"


def _losses(family: Sequence[Transfer]) -> list[list[str]]:
    """A line per size, a column per parametrization: the best loss, and how far above the lowest it is."""
    lines = [[family[0].axis, *(one.label for one in family)]]
    for size, losses in compared(family).items():
        lowest = min((loss for loss in losses if loss is not None), default=0.0)
        above = [f" (+{loss - lowest:.3f})" if loss and loss > lowest else "" for loss in losses]
        cells = ["-" if loss is None else f"{loss:.3f}{more}" for loss, more in zip(losses, above, strict=True)]
        lines.append([size, *cells])
    return lines


def markdown(found: Sequence[Transfer]) -> str:
    """For a Markdown page: a table for each axis, swept value and list of sizes, with a line per group."""

    def kind(one: Transfer) -> tuple[str, str | None, list[str]]:
        return one.axis, one.settings.get("value"), [curve.size for curve in one.curves]

    parts = []
    for (axis, value, sizes), same in groupby(found, key=kind):
        head = [f"{value or 'value'} over {axis}", *sizes, "slope", "regret", "noise (seed by seed)", "verdict"]
        parts.append(tables.markdown([head, *map(_line, same)]))
    return "\n\n".join(parts)


def _line(found: Transfer) -> list[str]:
    name = f"{found.title.partition(', ')[2]}, **{found.label}**".removeprefix(", ")
    noise = "-" if found.noise.residual is None else str(found.noise).replace(" seed by seed", "")
    optima = [_bounded(best) if (best := found.at(curve.size)) else "diverged" for curve in found.curves]
    verdict = found.verdict.partition(":")[0]
    return [name, *optima, bounded_slope(found.slope), _regret(found.regrets[-1]), noise, verdict]


def _bounded(best: Optimum) -> str:
    """The optimum, marked as a bound where it lies at the edge."""
    return {-1: "≤ ", 0: "", 1: "≥ "}[best.edge] + f"{best.value:.2f}"
