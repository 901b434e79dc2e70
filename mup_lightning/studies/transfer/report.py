"""The transfer report in words and tables."""

from __future__ import annotations

import math
from itertools import groupby

from mup_lightning import tables
from mup_lightning.studies.transfer.transfer import Finding, compared, families
from mup_lightning.studies.transfer.transfer_optimum import Optimum
from mup_lightning.studies.transfer.transfer_regret import Regret

LEGEND = (
    "optimum: log2 of the best base value ± its standard error; (edge): the last one tried, so it may lie beyond;\n"
    "(cliff): the next one is lost, so known to half a step. regret: loss with the smallest size's best value minus\n"
    "the best loss; (±): what the noise may make of it; ≥: the best value is the last one tried. Brackets: 95 %\n"
    "intervals. Losses: nats, mean over seeds, brought to one level."
)


def screen(findings: list[Finding]) -> str:
    """For the terminal: a table for every group, and the parametrizations side by side."""
    parts = []
    for family in families(findings):
        parts.append(f"== {title(family[0])} ==")
        parts += [f"{finding.group.label}: {finding.verdict}\n{_table(finding)}" for finding in family]
        if len(family) > 1:
            parts.append(f"best loss at equal size\n{tables.text(_losses(family))}")
    return "\n\n".join([*parts, LEGEND])


def title(finding: Finding) -> str:
    """What is swept over what, and what else is fixed."""
    settings = dict(finding.group.settings)
    for key in ("parametrization", "branch_depth"):
        settings.pop(key, None)
    value, optimizer = settings.pop("value", "base value"), settings.pop("optimizer", "")
    layer_norm = settings.pop("layer_norm", settings.pop("model.layer_norm", ""))
    norm = {"True": "LayerNorm", "False": "no LayerNorm"}.get(layer_norm.capitalize(), "")
    rest = [f"{key} {text}" for key, text in settings.items()]
    steps = f"{finding.group.steps} steps" if finding.group.steps else ""
    return ", ".join(filter(None, [f"{value} over {finding.group.axis}", optimizer, norm, *rest, steps]))


def _table(finding: Finding) -> str:
    """A column a size."""
    lines = [[finding.group.axis], ["optimum"], ["best tried"], ["loss"], ["regret"]]
    for curve, regret in zip(finding.group.curves, finding.regrets, strict=True):
        best = finding.of(curve.size)
        cells = ["-", "-", "diverged"] if best is None else [_optimum(best), _plateau(best), f"{best.loss:.3f}"]
        for line, cell in zip(lines, [curve.size, *cells, _regret(regret)], strict=True):
            line.append(cell)
    return tables.text(lines)


def _optimum(best: Optimum) -> str:
    error = f" ± {math.hypot(best.error, best.shape):.2f}" if best.error else ""
    return f"{best.value:.2f}{error}" + (" (edge)" if best.edge else " (cliff)" if best.cliff else "")


def _plateau(best: Optimum) -> str:
    """The best value that was tried, or all that tie."""
    if len(best.plateau) == 1:
        return f"2^{best.grid:g}"
    return f"2^{best.plateau[0]:g} to 2^{best.plateau[-1]:g}"


def _regret(regret: Regret) -> str:
    if regret.nats is None:
        return {"missing": "not tried", "untuned": "-"}.get(regret.why, regret.why)
    return f"{'≥ ' if regret.least else ''}{regret.nats:.3f}" + (f" (±{regret.margin:.3f})" if regret.margin else "")


def _losses(family: list[Finding]) -> list[list[str]]:
    """A line a size, a column a parametrization; how far above the lowest each is."""
    lines = [[family[0].group.axis, *(finding.group.label for finding in family)]]
    for size, losses in compared(family):
        lowest = min((loss for _, loss in losses if loss is not None), default=0.0)
        lines.append([size, *("-" if loss is None else _above(loss, lowest) for _, loss in losses)])
    return lines


def _above(loss: float, lowest: float) -> str:
    return f"{loss:.3f}" + (f" (+{loss - lowest:.3f})" if loss > lowest else "")


def markdown(findings: list[Finding]) -> str:
    """A table for a page: a line for every group, one table for each axis and swept value."""
    parts = []
    for _, same in groupby(findings, key=lambda f: (f.group.axis, f.group.settings.get("value"), _sizes(f))):
        parts.append("\n".join(_markdown(list(same))))
    return "\n\n".join(parts)


def _sizes(finding: Finding) -> tuple[str, ...]:
    return tuple(curve.size for curve in finding.group.curves)


def _markdown(findings: list[Finding]) -> list[str]:
    sizes, first = _sizes(findings[0]), findings[0].group
    head = [
        f"{first.settings.get('value', 'value')} over {first.axis}",
        *sizes,
        "slope",
        "regret",
        "noise (seed by seed)",
        "verdict",
    ]
    lines = [head, ["---"] * len(head)]
    for finding in findings:
        slope, noise = finding.slope, finding.noise
        optima = [_bound(best) if (best := finding.of(size)) else "diverged" for size in sizes]
        interval = f" [{slope.low:+z.2f}, {slope.high:+z.2f}]" if slope and slope.low is not None else ""
        bound = {"at most": "≤ ", "at least": "≥ ", "unknown": "? "}.get(slope.bound, "") if slope else ""
        lines.append(
            [
                f"{title(finding).partition(', ')[2]}, **{finding.group.label}**".removeprefix(", "),
                *optima,
                f"{bound}{slope.slope:+z.2f}{interval}" if slope else "-",
                _regret(finding.regrets[-1]),
                "-" if noise.deviation is None else str(noise).replace(" seed by seed", ""),
                finding.verdict.partition(":")[0],
            ]
        )
    return ["| " + " | ".join(line) + " |" for line in lines]


def _bound(best: Optimum) -> str:
    """The optimum; what it is at least or at most, where it lies at the edge."""
    return {-1: "≤ ", 0: "", 1: "≥ "}[best.edge] + f"{best.value:.2f}"
