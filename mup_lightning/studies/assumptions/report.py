"""The assumption checks in words: for the terminal, and as a Markdown table."""

from __future__ import annotations

from typing import Any

from mup_lightning import tables
from mup_lightning.studies.assumptions.assumption_results import CLAIMS, FORMULAS, NETWORKS


def screen(result: dict[str, Any]) -> str:
    """For the terminal: every assumption, and its verdict for each network and optimizer."""
    parts = [heading(result)]
    for assumption, formula in FORMULAS.items():
        lines = [f"{CLAIMS[assumption]}: {formula}"]
        for verdict in result["verdicts"]:
            if verdict["assumption"] == assumption:
                lines.append(f"  {NETWORKS[verdict['network']]}, {verdict['optimizer']}")
                lines.append(f"    {verdict['sentence']}")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def markdown(result: dict[str, Any]) -> str:
    """As a Markdown table: a row for each assumption, network and optimizer.

    "hold" counts the lines over depth (matrix, time, position) that hold.
    """
    head = [
        "assumption",
        "network",
        "optimizer",
        "verdict",
        "ratio",
        "size of the step",
        "steepest exponent of L",
        "hold",
    ]
    rows = [head, ["---"] * len(head)]
    for assumption, formula in FORMULAS.items():
        for verdict in result["verdicts"]:
            if verdict["assumption"] != assumption:
                continue
            cells = [cell for cell in verdict["cells"] if cell["verdict"] != "not judged"]
            low, high = min(min(cell["means"]) for cell in cells), max(max(cell["means"]) for cell in cells)
            broad = [cell for cell in cells if cell["position"] in ("only", "mean")]
            worst = max(broad, key=lambda cell: abs(cell["fit"]["exponent"]))
            fit = worst["fit"]
            good = sum(cell["verdict"] == "holds" for cell in cells)
            rows.append(
                [
                    f"{CLAIMS[assumption]}: `{formula}`",
                    NETWORKS[verdict["network"]],
                    verdict["optimizer"],
                    verdict["verdict"],
                    f"{low:.2f} to {high:.2f}",
                    _step(result, verdict),
                    f"{tables.plus_minus(fit['exponent'], (fit['high'] - fit['low']) / 2)} ({where(worst)})",
                    f"{good} of {len(cells)}",
                ]
            )
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def heading(result: dict[str, Any]) -> str:
    """What was measured, in one sentence."""
    settings = result["settings"]
    depths = ", ".join(map(str, settings["depths"]))
    at = ", ".join(f"{steps} ({time})" for time, steps in result["measured_at"].items())
    return f"ratios at depths {depths}, width {settings['width']}, {settings['seeds']} seeds, after steps {at}"


def _step(result: dict[str, Any], verdict: dict[str, Any]) -> str:
    """How large a step is against what it changes: the range over everything that was measured."""
    name = f"{verdict['assumption']}_step"
    sizes = [
        size
        for run in result["runs"]
        if (run["network"], run["optimizer"]) == (verdict["network"], verdict["optimizer"])
        for found in run["times"].values()
        for blocks in found.get(name, {}).values()
        for size in blocks
    ]
    return f"{min(sizes):.3f} to {max(sizes):.2f}" if sizes else ""


def where(cell: dict[str, Any]) -> str:
    """Which line over depth this is."""
    place = {"only": "", "mean": ", mean over blocks"}.get(cell["position"], f", {cell['position']} block")
    return f"{cell['matrix']}, {cell['time']}{place}"
