"""Probes in words: one optimizer for the terminal, all of them as a Markdown table."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from mup_lightning import tables

WINDOWS = {"first": "step 1", "later": "later"}
MARKS = {"consistent": "", "inconsistent": " ✗", "unclear": " ?"}
"""After an exponent."""

AXES = {"width": "n", "depth": "L"}


def screen(result: dict[str, Any]) -> str:
    """One probe for the terminal: the exponents, what is declared, the verdict; a recipe where one is proposed."""
    judged = {(cell["window"], cell["role"], cell["axis"]): cell for cell in result["cells"]}
    head = ["role", "steps"]
    for symbol in AXES.values():
        head += [f"exponent of {symbol}", *(["declared", "verdict"] if judged else [])]
    lines = [head]
    for role, window, axes in _rows(result):
        line = [role, WINDOWS[window]]
        for axis in AXES:
            line.append(interval(axes[axis]))
            if judged:
                cell = judged[window, role, axis]
                line += [_fraction(cell["declared"]), cell["verdict"]]
        lines.append(line)
    parts = [f"‖A‖_R of {result['optimizer']}, exponents with 95 % intervals", tables.text(lines)]
    if result.get("proposal"):
        parts.append(_proposal(result))
    if not result["fits"].get("first"):
        parts.append("note: its first step changes nothing, so there is no exponent at step 1")
    return "\n\n".join([*parts, result["sentence"]])


def markdown(results: list[dict[str, Any]]) -> str:
    """All probes as one Markdown table: measured exponents beside declared ones; ✗ inconsistent, ? unclear."""
    lines = [
        "| optimizer | role | declared n, L | n at step 1 | n later | L at step 1 | L later |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        judged = {(cell["window"], cell["role"], cell["axis"]): cell for cell in result["cells"]}
        name = result["optimizer"]
        roles = list(dict.fromkeys(role for role, _, _ in _rows(result)))
        for number, role in enumerate(roles):
            cells = []
            for axis in AXES:
                for window in WINDOWS:
                    fit = result["fits"].get(window, {}).get(role, {}).get(axis)
                    mark = MARKS[judged[window, role, axis]["verdict"]] if (window, role, axis) in judged else ""
                    cells.append("–" if fit is None else plus_minus(fit) + mark)
            declared = {axis: cell["declared"] for (_, of, axis), cell in judged.items() if of == role}
            shown = ", ".join(_fraction(declared[axis]) for axis in AXES) if declared else "–"
            title = f"**{name}**: {result['verdict']}" if number == 0 else ""
            lines.append(f"| {title} | {role} | {shown} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def interval(fit: dict[str, float]) -> str:
    """An exponent with its interval."""
    return f"{signed(fit['exponent'])} [{signed(fit['low'])}, {signed(fit['high'])}]"


def plus_minus(fit: dict[str, float]) -> str:
    """An exponent with half of its interval."""
    return f"{signed(fit['exponent'])} ± {(fit['high'] - fit['low']) / 2:.2f}"


def signed(value: float) -> str:
    """Two decimals with their sign; no -0.00."""
    return f"{round(value, 2) + 0.0:+.2f}"


def _rows(result: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """(role, window, axes), role by role."""
    roles = dict.fromkeys(role for by_role in result["fits"].values() for role in by_role)
    return [
        (role, window, result["fits"][window][role])
        for role in roles
        for window in WINDOWS
        if role in result["fits"].get(window, {})
    ]


def _proposal(result: dict[str, Any]) -> str:
    proposal = result["proposal"]
    lines = [["proposed recipe", "‖A‖_R", "learning rate", "weight decay"]]
    for role, row in proposal["recipe"]["roles"].items():
        found = proposal["direction"].get(role)
        measured = "as AdamW" if found is None else _scale([found["width"]["snapped"], found["depth"]["snapped"]])
        lines.append([role, measured, _scale(row["lr"]), _scale(row["weight_decay"])])
    facts = result["facts"]
    notes = [
        f"learning rate: {facts['learning_rate']['meaning']}",
        f"weight decay: {facts['weight_decay']['meaning']}",
        f"parameters given to it: {facts['grouping']}",
        *(f"warning: {warning}" for warning in proposal["warnings"]),
    ]
    legend = "Factors on the base values; n stands for width / base width, L for depth / base depth."
    return "\n".join([tables.text(lines), legend, "", *notes])


def _scale(exponents: list[str]) -> str:
    factors = [
        symbol if exponent == "1" else f"{symbol}^{exponent}"
        for symbol, exponent in zip(AXES.values(), exponents, strict=True)
        if exponent != "0"
    ]
    return " ".join(factors) or "1"


def _fraction(value: float) -> str:
    return str(Fraction(value).limit_denominator(12))
