"""Coordinate checks in words: one for the terminal, many as a Markdown table."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from mup_lightning import tables
from mup_lightning.studies.coordinates.coordinate_results import exponents, title

SYMBOLS = {"width": "n", "depth": "L", "both": "r"}

MARKS = {"PASS": "", "FAIL": " ✗", "INCONCLUSIVE": " ?"}
"""After an exponent."""

SHOWN = ("attention, last block", "mlp, last block", "residual, last block", "logits")
"""Columns of the Markdown table; the verdict counts all features."""


def screen(result: dict[str, Any]) -> str:
    """One check for the terminal: every exponent that was asked for, and all verdicts."""
    asked = result["asked"]
    steps = max(len(run["losses"]) for run in result["runs"] if run["parametrization"] == asked)  # of the soundest
    lines = [["feature", "at init", f"after {steps} steps", "its change"]]
    for name, of_feature in exponents(result, asked).items():
        lines.append([name, *(_cell(of_feature[quantity]) for quantity in ("init", "feature", "change"))])
    symbol = SYMBOLS[result["axis"]]
    head = f"exponents of {symbol} with 95 % intervals, {title(result, asked)} (✗ outside its band, ? cannot be told)"
    head += _without(result, asked)
    verdicts = [
        f"{title(result, name)}: {check['verdict']}: {check['sentence']}" for name, check in result["checks"].items()
    ]
    diverged = [f"  diverged: {line}" for check in result["checks"].values() for line in check["diverged"]]
    table = [head, tables.text(lines), ""] if len(lines) > 1 else []
    return "\n".join(["", *table, *reversed(verdicts), *diverged])


def markdown(results: list[dict[str, Any]]) -> str:
    """Many checks as one table, a row for every parametrization of an optimizer along an axis.

    Where several checks have the same row, such as SP beside k = 1 and beside k = 2, the one that was asked for counts,
    else the last one. Checks at other sizes or base learning rates have rows of their own.
    """
    rows: dict[_Row, str] = {}
    own: set[_Row] = set()
    for result in results:
        config = result["config"]
        special = "" if config["model"]["layer_norm"] else ", no LayerNorm"
        special += ", measured variant" if config["recipe"].get("variant") == "measured" else ""
        for name, check in result["checks"].items():
            sizes = f"{_size(result['shapes'][0], result)} to {_size(result['shapes'][-1], result)}"
            key = _Row(
                config["recipe"]["optimizer"],
                special,
                result["axis"],
                sizes,
                title(result, name),
                config["recipe"]["lr"],
            )
            if name == result["asked"]:
                own.add(key)
            elif key in own:
                continue
            verdict = f"**{check['verdict']}**: {check['sentence']}{_without(result, name)}"
            seeds = len({run["seed"] for run in result["runs"] if run["parametrization"] == name})
            rows[key] = " | ".join([str(seeds), *_shown(exponents(result, name)), verdict])
    order = {"SP": 0, "recipe, k = 1": 1, "recipe, k ≥ 2": 2}
    axes = list(SYMBOLS)
    lines = [
        f"| optimizer | axis | parametrization | base lr | seeds | {' | '.join(SHOWN)} | verdict |",
        "|---|---|---|---|---|" + "---|" * (len(SHOWN) + 1),
    ]
    for key in sorted(
        rows, key=lambda key: (key.optimizer, key.special, axes.index(key.axis), key.sizes, key.lr, order[key.name])
    ):
        where = f"{key.axis} {key.sizes}"
        lines.append(f"| {key.optimizer}{key.special} | {where} | {key.name} | {_power_of_two(key.lr)} | {rows[key]} |")
    return "\n".join(lines) + "\n"


class _Row(NamedTuple):
    """What tells the rows of the table apart."""

    optimizer: str
    special: str
    axis: str
    sizes: str
    name: str
    lr: float


def _size(shape: list[int], result: dict[str, Any]) -> str:
    width, depth = shape
    return {"width": f"{width}", "depth": f"{depth}"}.get(result["axis"], f"({width}, {depth})")


def _without(result: dict[str, Any], name: str) -> str:
    """Which sizes the exponents were not fitted to, where there are exponents."""
    lost = {
        (run["width"], run["depth"]) for run in result["runs"] if run["parametrization"] == name and run["diverged"]
    }
    if not lost or not result["checks"][name]["exponents"]:
        return ""
    return f"; exponents without width and depth {', '.join(map(str, sorted(lost)))}"


def _power_of_two(lr: float) -> str:
    """As people write learning rates of a grid; others in decimals."""
    power = math.log2(lr) if lr > 0 else 0.5
    return f"2^{power:.0f}" if power == round(power) else f"{lr:g}"


def _shown(found: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    """After the last step, and in brackets the change: the two that most is asked of."""
    return [
        f"{_cell(found[name]['feature'])} ({_cell(found[name]['change'])})" if name in found else "–" for name in SHOWN
    ]


def _cell(one: dict[str, Any]) -> str:
    return (
        "zero" if one["exponent"] is None else tables.plus_minus(one["exponent"], (one["high"] - one["low"]) / 2)
    ) + MARKS[one["verdict"]]
