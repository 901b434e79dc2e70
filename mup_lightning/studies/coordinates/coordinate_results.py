"""Reading a coordinate check's result file."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from mup_lightning.studies.result_read import read_result

KEYS = {"axis", "asked", "checks", "features", "sizes", "shapes", "settings", "config", "runs"}


def read_check(file: Path) -> dict[str, Any]:
    """Read a result of `mup-lightning coord-check`.

    Raises:
        UserError: there is no such file, or it is no coordinate check's result.
    """
    return read_result(file, "coord-check", KEYS)


def title(result: dict[str, Any], parametrization: str) -> str:
    """A parametrization in words. All k >= 2 agree."""
    if parametrization == "sp":
        return "SP"
    return "recipe, k = 1" if result["config"]["recipe"]["branch_depth"] == 1 else "recipe, k ≥ 2"


def exponents(result: dict[str, Any], parametrization: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Feature -> quantity -> the judged exponent, in the order of the forward pass."""
    found: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for one in result["checks"][parametrization]["exponents"]:
        found[one["feature"]][one["quantity"]] = one
    return dict(found)


def curves(result: dict[str, Any], parametrization: str, feature: str, kind: str) -> list[list[list[float]]]:
    """A feature's numbers for drawing.

    Args:
        result: from `read_check`.
        parametrization: of its checks.
        feature: of its features.
        kind: "norms" or "changes".

    Returns:
        For every size, for every seed: a number after 0, 1, ... steps; fewer where the training diverged.
    """
    found = []
    for (width, depth), taps in zip(result["shapes"], result["features"][feature], strict=True):
        runs = [
            run
            for run in result["runs"]
            if (run["parametrization"], run["width"], run["depth"]) == (parametrization, width, depth)
        ]
        found.append([[max(values) for values in zip(*(run[kind][tap] for tap in taps), strict=True)] for run in runs])
    return found
