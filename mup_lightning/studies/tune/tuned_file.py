"""The tuned value for people, and as a recipe file."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import Any

import yaml

from mup_lightning.studies.tune.prediction import Drift, Tuned


def screen(result: Tuned, base: tuple[int, int], target: tuple[int, int], own: float | None = None) -> str:
    """The value, how sure it is, and what speaks against it.

    Args:
        result: what was found.
        base: width and depth that the value belongs to.
        target: width and depth that it was found for.
        own: the value that the target has at the same base shape, if that is known.
    """
    inner = _powers(result.log2 - result.half, result.log2 + result.half, result.turns)
    lines = [
        f"{result.key} {result.value:g} (2^{result.log2:.2f}) at base shape {base}",
        f"  at the proxies      best {inner} (95 %)",
        *(f"  drift over {drift.axis:<8} {_drift(drift)}" for drift in result.drifts),
        f"  at {target!s:<16} best {_powers(*result.outer, result.outer_turns)}, had the drift gone on so far",
    ]
    if own is not None:
        lines += _beside(result, own)
    return "\n".join([*lines, *(f"warning: {warning}" for warning in result.warnings)])


def _beside(result: Tuned, own: float) -> list[str]:
    """Whether the value that the target has now is any worse; nothing where nothing tells."""
    if result.turns or not math.isfinite(result.half) or own <= 0:
        return []
    log2 = math.log2(own)
    inside = abs(log2 - result.log2) <= result.half
    said = "inside the proxies' range: as good, for all these runs can tell" if inside else "outside the proxies' range"
    return [f"  the target has now  2^{log2:.2f}, {said}"]


def _drift(drift: Drift) -> str:
    interval = "" if drift.low is None or drift.high is None else f" [{drift.low:+.2f}, {drift.high:+.2f}]"
    below, above = drift.reach
    reach = "" if math.isinf(below) else f" [{drift.moved - below:+.2f}, {drift.moved + above:+.2f}]"
    bound = {(): "", (1,): "at least ", (-1,): "at most ", (-1, 1): "perhaps "}[tuple(sorted(drift.turns))]
    return (
        f"{bound}{drift.slope:+.2f}{interval} powers of two for each doubling; {drift.doublings:.1f} doublings to the "
        f"target: {drift.moved:+.2f}{reach}"
    )


def _powers(low: float, high: float, turns: frozenset[int]) -> str:
    """A range, open to where better values may lie beyond those tried."""
    if turns == {-1, 1}:
        return "unknown: the best value at some sizes is the last one tried, so widen the grid"
    if math.isinf(low) or math.isinf(high):
        return "between unknown bounds: more seeds or sizes"
    if turns:
        side = f"at least 2^{low:.2f}" if turns == {1} else f"at most 2^{high:.2f}"
        return f"{side}: the best value at some sizes is the last one tried"
    return f"between 2^{low:.2f} and 2^{high:.2f}"


def write(
    result: Tuned,
    base: tuple[int, int],
    target: tuple[int, int],
    origin: str,
    belongings: dict[str, Any],
    file: Path,
) -> None:
    """Write a recipe file for `mup-lightning train -c`, whole or not at all.

    Args:
        result: what was found.
        base: width and depth that the value belongs to.
        target: width and depth that it was found for.
        origin: the runs that it rests on, in words.
        belongings: dotted key -> value, of all that the value is meant with.
        file: to write.
    """
    said = [f"Tuned on small models, for {target}. {origin}", *screen(result, base, target).splitlines()]
    whole = textwrap.TextWrapper(116, initial_indent="# ", subsequent_indent="#     ", break_on_hyphens=False)
    comment = "\n".join(line for text in said for line in whole.wrap(text))  # paths and negative numbers stay whole
    # The base shape goes with the value, which means another rate at another one; so do the optimizer, k, LayerNorm...
    shape = {"recipe.base_width": base[0], "recipe.base_depth": base[1]}
    content: dict[str, Any] = {}
    for key, value in ({result.key: result.value} | shape | belongings).items():
        *sections, name = key.split(".")
        place = content
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value
    text = f"{comment}\n{yaml.safe_dump(content, sort_keys=False)}"
    unfinished = file.with_suffix(".unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(file)
