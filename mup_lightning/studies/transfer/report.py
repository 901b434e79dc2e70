"""`mup-lightning report transfer` and `report best`: a table of losses in words, tables and JSON."""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from mup_lightning import tables
from mup_lightning.errors import UserError
from mup_lightning.files import check_folder, make_folder, write_json
from mup_lightning.studies.transfer import losses, verdict
from mup_lightning.studies.transfer.curves import curves_of
from mup_lightning.studies.transfer.verdict import Group, bounded_slope, families, transfer
from mup_lightning.typed import NonNegativeFloat, PositiveFloat, Typed

LEGEND = (
    "optimum: log2 of the best base value ± its standard error; (edge): the last one tried, so it may lie beyond;\n"
    "(cliff): the next one is lost, so known to half a step. regret: loss with the smallest size's best value minus\n"
    "the best loss; (±): what the noise may make of it; ≥: the best value is the last one tried. Brackets: 95 %\n"
    "intervals. robustness: loss added by a value off by one power of two; law-fit error: of the optima from a power\n"
    "law in size; asymptotic penalty: loss at the largest size with the value that the others predict, above the\n"
    "best there. Losses: nats, mean over seeds, adjusted where values were run with different seeds."
)

GROUP = ("optimizer", "parametrization", "branch_depth", "width", "depth", "value")
"""Runs that agree in these, and in all further options of the table, are one group of `best_values`."""

NEEDED = tuple(dict.fromkeys((*GROUP, *losses.COLUMNS, "unigram_loss", "steps")))


@dataclass
class BestSettings(Typed, prefix="--"):
    """Print the lowest mean loss of each group and the losses of the other values.

    Attributes:
        results: results.csv of `mup-lightning sweep`, or its folder.
        out: folder for best.png, each group's loss with the spread between its seeds; null: none.
        json: print JSON.
        markdown: print tables in Markdown.
    """

    results: Path
    out: Path | None = None
    json: bool = False
    markdown: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.json and self.markdown:
            raise UserError("--json and --markdown are two forms of the same report; choose one")


@dataclass
class TransferSettings(BestSettings, prefix="--"):
    """Print, for each group, the optimum of each size, its slope over the sizes, the regret, the noise and a verdict.

    Attributes:
        results: results.csv of a sweep or its folder; or a .csv with the columns parametrization, axis, size,
            log2_value, seed, loss (empty: diverged).
        out: folder for figures and transfer.json; null: none.
        json: print JSON.
        markdown: print tables in Markdown.
        noise: standard deviation between seeds, nats, for groups that have one seed; null: unknown.
        slope_tolerance: slope that still counts as transfer, powers of two per doubling.
        regret_tolerance: regret that still counts as transfer, nats.
    """

    noise: NonNegativeFloat | None = None
    slope_tolerance: PositiveFloat = verdict.SLOPE_TOLERANCE
    regret_tolerance: PositiveFloat = verdict.REGRET_TOLERANCE


def run(settings: TransferSettings) -> None:
    """Print the transfer report, and draw it if a folder is given. UserError: runs cannot be read or compared."""
    if settings.out:
        check_folder(settings.out)
    runs = losses.read_losses(settings.results)
    found = transfer(runs, settings.slope_tolerance, settings.regret_tolerance, settings.noise)
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


def text(found: Sequence[Group]) -> str:
    """For the terminal: a table for every group, and the parametrizations side by side."""
    parts = []
    for family in families(found):
        parts.append(f"== {family[0].title} ==")
        for one in family:
            error, penalty = one.law_fit_error, one.penalty(family)
            metrics = f"law-fit error {_shown(error, ' powers of two')}, asymptotic penalty {_shown(penalty, ' nats')}"
            parts.append(f"{one.label}: {one.verdict}\n{_table(one)}\n{metrics}")
        if len(family) > 1:
            lines = [[family[0].axis, *(one.label for one in family)]]
            lines += [[size, *map(_shown, best)] for size, best in compared(family).items()]
            parts.append(f"best loss at equal size\n{tables.text(lines)}")
    return "\n\n".join([*parts, LEGEND])


def _table(found: Group) -> str:
    """A column per size."""
    columns = [[found.axis, "optimum", "best tried", "loss", "regret", "robustness"]]
    for curve, cost in zip(found.curves, found.regrets, strict=True):
        cells = ["-", "-", "diverged"]
        if best := found.at(curve.size):
            error = f" ± {math.hypot(best.se, best.shape_se):.2f}" if best.se else ""
            mark = " (edge)" if best.edge else " (cliff)" if best.cliff else ""
            ends = best.plateau if len(best.plateau) > 1 else (best.best_value,)
            tried = " to ".join(f"2^{value:g}" for value in dict.fromkeys((ends[0], ends[-1])))
            cells = [f"{best.value:.2f}{error}{mark}", tried, f"{best.loss:.3f}"]
        columns.append([curve.size, *cells, str(cost), _shown(found.robustness(curve))])
    return tables.text(list(zip(*columns, strict=True)))


def _shown(value: float | None, unit: str = "") -> str:
    """A number with its unit; a dash where there is none."""
    return "-" if value is None else "diverges" if math.isinf(value) else f"{value:.3f}{unit}"


def compared(family: Sequence[Group]) -> dict[str, list[float | None]]:
    """Size, small to large -> best loss of each of the family; None where nothing trained."""
    sizes = sorted({(curve.position, curve.size) for one in family for curve in one.curves})
    return {size: [best.loss if (best := one.at(size)) else None for one in family] for _, size in sizes}


def markdown(found: Sequence[Group]) -> str:
    """For a Markdown page: a table for each axis, swept value and list of sizes, with a line per group."""
    parts = []
    kinds = groupby(found, lambda one: (one.axis, one.settings.get("value", "value"), [c.size for c in one.curves]))
    for (axis, value, sizes), same in kinds:
        rows = [[f"{value} over {axis}", *sizes, "slope", "regret", "noise (seed by seed)", "verdict"]]
        for one in same:
            name = f"{one.title.partition(', ')[2]}, **{one.label}**".removeprefix(", ")
            noise = "-" if one.noise.residual is None else str(one.noise).replace(" seed by seed", "")
            best = [one.at(size) for size in sizes]  # at the edge of what was tried: a bound
            optima = [f"{('', '≥ ', '≤ ')[o.edge]}{o.value:.2f}" if o else "diverged" for o in best]
            cells = [bounded_slope(one.slope), str(one.regrets[-1]), noise, one.verdict.partition(":")[0]]
            rows.append([name, *optima, *cells])
        parts.append(tables.markdown(rows))
    return "\n\n".join(parts)


def to_dict(found: Sequence[Group]) -> dict[str, Any]:
    """The groups as plain values for JSON; None where there is no value. docs/method/transfer.md lists the keys."""
    comparisons = []
    for family in (family for family in families(found) if len(family) > 1):
        labels = [one.label for one in family]
        best = {size: dict(zip(labels, own, strict=True)) for size, own in compared(family).items()}
        comparisons.append(dict(family[0].family) | {"best_loss": best})
    return {"groups": [_group(one, family) for family in families(found) for one in family], "comparisons": comparisons}


def _group(found: Group, family: Sequence[Group]) -> dict[str, Any]:
    slope, optima, largest = found.slope, found.optima, found.regrets[-1]
    best = {curve.size: found.at(curve.size) for curve in found.curves}
    regrets = dict(zip(best, found.regrets, strict=True))
    robust = {curve.size: found.robustness(curve) for curve in found.curves}
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
        "slope_ci": [slope.low, slope.high] if slope and math.isfinite(slope.low) else None,
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
        "law_fit_error": found.law_fit_error,
        "robustness": {size: _finite(lost) for size, lost in robust.items()},
        "asymptotic_penalty": _finite(found.penalty(family)),
    }


def _finite(value: float | None) -> float | None:
    """A value for JSON, which has no infinity."""
    return value if value is not None and math.isfinite(value) else None


def run_best(settings: BestSettings) -> None:
    """Print the best values, and draw them if a folder is given; see `best_values`."""
    if settings.out:
        check_folder(settings.out)
    found = best_values(settings.results)
    if settings.out:
        from mup_lightning.studies.transfer.figures import draw_best

        make_folder(settings.out)
        draw_best(found, settings.out / "best.png")
    if settings.json:
        print(json.dumps(found, indent=1))
        return
    columns = dict.fromkeys(column for best in found for column in best["group"])
    shown = [c for c in columns if len({best["group"].get(c, "") for best in found}) > 1] or ["optimizer"]
    value = "value" if "value" in shown else found[0]["group"]["value"]
    rows = [[*shown, f"best {value}", "loss", "others tried"]]
    for best in found:
        texts = {v: "diverged" if loss is None else f"{loss:.3f}" for v, loss in best["losses"].items()}
        name = "-" if best["best"] is None else f"2^{best['best']:g}" + (" (edge)" if best["edge"] else "")
        others = ", ".join(f"2^{v:g} {text}" for v, text in texts.items() if v != best["best"])
        cells = [name, texts.get(best["best"], "diverged"), others]
        rows.append([*(best["group"].get(column, "") for column in shown), *cells])
    print((tables.markdown if settings.markdown else tables.text)(rows))
    steps = " or ".join(str(count) for count in sorted({best["steps"] for best in found}))
    unigram = " or ".join(dict.fromkeys(f"{loss:.3f}" for loss in sorted({best["unigram_loss"] for best in found})))
    print(f"\n{steps} steps; a unigram model has {unigram} nats per token")
    if any(best["leveled"] for best in found):
        print("Losses are means, adjusted where values were run with different seeds (docs/method/transfer.md)")
    if settings.out:
        print(f"wrote {settings.out / 'best.png'}")


def best_values(path: Path) -> list[dict[str, Any]]:
    """The best value of every group of a sweep's table, in order of their best losses, as plain values for JSON.

    By log2 of the value: "losses", nats per token, means over the seeds (None where any diverged), and "lost".
    "leveled": seeds differ between values, so that means are adjusted; "edge": the best is the smallest or largest
    tried; "between_seeds": standard deviation of the best's losses, None for one seed; "steps": the most that any run
    made. Raises UserError where the table cannot be read, holds a run twice, or a group mixes texts or steps.
    """
    runs = losses.read_losses(path, NEEDED)
    columns = [*GROUP, *losses.options(runs)]
    rows = runs.to_dict("records")
    groups = [tuple((column, row[column]) for column in columns if column != row["value"]) for row in rows]
    unigram = losses.numbers(runs, "unigram_loss", "a number")
    runs = runs.assign(group=groups, position=0.0, size=runs["width"], unigram_loss=unigram)
    run_of = ["group", "log2_value", "seed", "config_hash"]
    runs = runs[~runs.duplicated(run_of) | runs.duplicated([*run_of, "axis"])]  # a run may stand there on two axes
    losses.refuse_different(runs, runs["group"], ["unigram_loss", "steps"])
    found = []
    for group, own in runs.groupby("group", sort=False):
        (curve,), _ = curves_of(own)
        means, values = curve.trained, curve.values.tolist()
        best = min(means, key=lambda value: means[value], default=None)
        seeds = own[own["log2_value"].isin(means)].groupby("log2_value")["seed"].agg(frozenset)
        ended = own[own["loss"].notna()] if own["loss"].notna().any() else own
        one: dict[str, Any] = {"group": dict(group), "losses": {value: means.get(value) for value in values}}
        one |= {"leveled": seeds.nunique() > 1, "lost": dict.fromkeys(curve.lost, "diverged")}
        spread = curve.spread[values.index(best)] if best is not None else math.nan
        one |= {"between_seeds": None if math.isnan(spread) else float(spread)}
        one |= {"best": best, "edge": best in (values[0], values[-1])}
        one |= {"unigram_loss": float(ended["unigram_loss"].max()), "steps": int(ended["steps"].max())}
        found.append(one)
    return sorted(found, key=lambda best: math.inf if best["best"] is None else best["losses"][best["best"]])
